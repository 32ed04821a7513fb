"""Where a norm may be: candidate regions of a graph.

A region is found around an *anchor*, an operator that a norm has: a root over a statistic, or a
norm operator that may be part of another norm. It begins at one value, its *entry*, and ends at
values of the entry's shape, its *exits*. Only the graph's structure is looked at here; ``proof.py``
decides what a region computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from normswap.graph.graph import Graph, Node, Value
from normswap.graph.operators import operator
from normswap.norms.constants import known_constant, known_scalar

_BEFORE = 40  # operators between an entry and its anchor, at most
_BEHIND = 24  # operators behind the anchor that are looked at
_TO_STATISTIC = 24  # operators between a root and its statistic, at most


# -- anchors -------------------------------------------------------------------------------------


def is_root(graph: Graph, node: Node) -> bool:
    """Whether ``node`` takes a root, by whatever operator, of something that depends on an input.

    A logarithm counts, since exp(-log(x) / 2) is one.
    """
    takes_root = bool(node.operator.root)
    if node.op == "Pow":
        exponent = known_scalar(graph, node.input(1))
        takes_root = exponent is not None and (exponent < 0 or not exponent.is_integer())
    return takes_root and bool(node.inputs) and not node.data_input().is_constant


def reduces(node: Node) -> bool:
    """Whether ``node`` computes few numbers from many, as a statistic does."""
    operator = node.operator
    if operator.statistic or operator.product == "einsum":
        return True
    return bool(operator.product) and shrinks(node)


def shrinks(node: Node) -> bool:
    """Whether a product leaves one number of each row, be it with the product behind it: a mean as
    a matrix of 1/C, or a sum of sums."""
    before, after = _rows_of(node)
    pairs = list(zip(before, after, strict=True))
    if any(b > 1 == a for b, a in pairs):
        return True
    readers = node.output.readers
    return any(b > a for b, a in pairs) and bool(readers) and all(map(_sums_up, readers))


def _sums_up(node: Node) -> bool:
    return bool(node.operator.product) and any(
        b > 1 == a for b, a in zip(*_rows_of(node), strict=True)
    )


def _rows_of(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of what a product with a constant reads and yields, if the axes stay."""
    dynamic = node.dynamic_inputs()
    if len(dynamic) != 1:
        return (), ()
    before, after = dynamic[0].shape, node.output.shape
    alike = before is not None and after is not None and len(before) == len(after)
    return (before or (), after or ()) if alike else ((), ())


def over_statistic(node: Node) -> bool:
    """Whether a reduction lies on the way into ``node``, or it is one itself."""
    if reduces(node):
        return True
    pending: list[Value] = node.dynamic_inputs()
    for _ in range(_TO_STATISTIC):
        if not pending:
            return False
        producer = pending.pop(0).producer
        if producer is not None and not producer.operator.reads_sizes_only:
            if reduces(producer):
                return True
            pending.extend(producer.dynamic_inputs())
    return False


def is_lowering(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is a norm operator that may be part of another norm.

    Exporters lower norms to the operators of others: an InstanceNorm or GroupNorm whose rows were
    reshaped into channels, a BatchNorm in training mode or one that reads statistics which the
    graph computes, or a norm without weight and bias of its own behind which a product or a sum
    with constants follows or the rows are channels again.
    """
    norm = node.operator.norm
    if norm == "batch_norm":
        statistics = [v for v in node.inputs[3:5] if v is not None]
        return bool(node.attributes.get("training_mode")) or any(
            not v.is_constant for v in statistics
        )
    if not norm or node.data_input().is_constant:
        return False
    readers = node.output.readers
    affine = any(r.operator.commutes and len(r.dynamic_inputs()) == 1 for r in readers)
    if norm in ("instance_norm", "group_norm"):
        return affine or _is_reshaped(node)
    goes_back = any(r.operator.move == "reshape" for r in readers) and _is_reshaped(node)
    plain = _is_all(graph, node.input(1), 1.0) and _is_all(graph, node.input(2), 0.0)
    return (affine or goes_back) and plain


def _is_reshaped(node: Node) -> bool:
    value = node.data_input()
    while value.producer is not None and value.producer.operator.passes_through:
        if value.producer.op == "Reshape":
            return True
        value = value.producer.data_input()
    return False


def _is_all(graph: Graph, value: Value | None, number: float) -> bool:
    if value is None:
        return True
    array = known_constant(graph, value)
    return array is not None and bool((array == number).all())


# -- regions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """What depends on ``entry`` and constants alone, as far as a norm can reach.

    Attributes:
        entry: the value that a norm of this region would normalise.
        exits: values of the entry's shape that depend on the anchor, in the order of execution.
        nodes: what computes them from the entry.
        sizes: the outputs of Shape nodes elsewhere in the graph that ``nodes`` read.
    """

    entry: Value
    exits: tuple[Value, ...]
    nodes: tuple[Node, ...]
    sizes: tuple[Value, ...]

    @property
    def counts(self) -> bool:
        """Whether a size is computed with, so that what holds at one size may not at others."""
        return any(_counts(node) for node in self.nodes)


@dataclass
class Trail:
    """What was looked at for the regions around an anchor.

    Attributes:
        nodes: those between an entry and the anchor, and those that may be part of a region.
        values: those whose readers were looked at.
        rim: these readers.
        plain: whether that is all: no size was read, no limit reached.
    """

    nodes: dict[Node, None] = field(default_factory=dict)
    values: dict[Value, None] = field(default_factory=dict)
    rim: dict[Node, None] = field(default_factory=dict)
    plain: bool = True


class Regions:
    """The candidate regions of a graph, which is not edited meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._sizes: dict[Value, dict[Node, None] | None] = {}
        self.of_data = graph.descendants(graph.inputs)  # others are computed from sizes, if at all
        self.trail = Trail()  # of the last anchor

    def around(self, anchor: Node) -> Iterator[Region]:
        """The candidate regions around ``anchor``, that with the nearest entry first."""
        trail = self.trail = Trail()
        for entry in _entries(anchor):
            between = _between(anchor, entry)
            trail.plain &= between is not None and not between[1]
            if between is None:
                continue
            trail.nodes |= between[0]
            if _condenses(anchor, entry, between[0]):
                region = self._grown(anchor, entry, *between)
                if region.exits and not (region.sizes and region.counts):
                    yield region

    def _grown(
        self, anchor: Node, entry: Value, between: dict[Node, None], sizes: dict[Node, None]
    ) -> Region:
        """The region behind ``entry``: what reads it and it alone, up to barriers and the next
        norm."""
        known: set[Value] = {entry, *(v for n in between for v in n.outputs)}
        behind: set[Value] = set(anchor.outputs)  # depends on the anchor
        exits: dict[Value, None] = {}
        extra, read_sizes, trail = set(between), dict(sizes), self.trail
        pending = [entry, *(v for n in between for v in n.outputs)]
        if anchor.output.shape == entry.shape:
            exits[anchor.output] = None
        while pending and len(extra) < len(between) + _BEHIND:
            value = pending.pop(0)
            readers = dict.fromkeys(n for n, _ in value.uses)
            trail.values[value] = None
            trail.rim |= readers
            for node in readers:
                if node in extra or is_barrier(node) or node.op == "Shape":
                    continue
                outside = [v for v in node.dynamic_inputs() if v not in known]
                shape_nodes = self._sizes_of(outside, known)
                if shape_nodes is None:
                    continue
                dependent = any(v in behind for v in node.dynamic_inputs())
                if dependent and reduces(node):
                    continue  # the next norm begins: two with plain affines would equal one
                extra.add(node)
                read_sizes |= shape_nodes
                known |= {*node.outputs, *outside}
                pending.extend(node.outputs)
                if dependent:
                    behind |= set(node.outputs)
                    exits.update((v, None) for v in node.outputs if v.shape == entry.shape)
        nodes = self._graph.ancestors(exits, stop=[entry, *(n.output for n in read_sizes)])
        trail.nodes |= dict.fromkeys([*extra, *nodes])
        trail.plain &= not read_sizes and len(extra) < len(between) + _BEHIND
        position = {node: index for index, node in enumerate(nodes)}
        ordered = sorted(exits, key=lambda v: position[v.producer] if v.producer else -1)
        return Region(entry, tuple(ordered), tuple(nodes), tuple(n.output for n in read_sizes))

    def _sizes_of(self, values: list[Value], known: set[Value]) -> dict[Node, None] | None:
        """The Shape nodes that ``values`` are computed from, but for those of ``known`` values;
        None if anything else that is dynamic."""
        found: dict[Node, None] = {}
        for value in values:
            if value not in self._sizes:
                of_data = value in self.of_data
                self._sizes[value] = None if of_data else _sizes_behind(value)
            shapes = self._sizes[value]
            if shapes is None:
                return None
            found |= shapes
        return {node: None for node in found if node.data_input() not in known}


def narrowed(graph: Graph, region: Region, exit_value: Value) -> Region:
    """The part of a region that computes one of its exits."""
    nodes = graph.ancestors([exit_value], stop=[region.entry, *region.sizes])
    reads = {v for node in nodes for v in node.inputs}
    sizes = tuple(v for v in region.sizes if v in reads)
    return Region(region.entry, (exit_value,), tuple(nodes), sizes)


def obstacle(anchor: Node) -> str:
    """Why there is no region around ``anchor``, for a report."""
    pending, seen, sources = anchor.dynamic_inputs(), set[Value](), []
    while pending and len(seen) < _BEFORE:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer
        if node is not None and _is_control_flow(node):
            return f"data-dependent control flow ({node.op} at {node.output.name}) lies inside"
        if node is None or is_barrier(node):
            sources.append(value.name)
        else:
            pending.extend(node.dynamic_inputs())
    if any(v.shape is None for v in seen):
        return "the shapes around it are unknown; give the inputs fixed sizes"
    if len(set(sources)) < 2:
        return "nothing behind it has its input's shape and depends on that input alone"
    names = ", ".join(sorted(set(sources))[:3])
    return f"more than one computed value flows in ({names}), so no single input is normalised"


def behind_control_flow(node: Node) -> bool:
    """Whether a branch or loop computes an input of ``node``."""
    producers = [v.producer for v in node.dynamic_inputs() if v.producer is not None]
    return any(_is_control_flow(producer) for producer in producers)


def _is_control_flow(node: Node) -> bool:
    return operator(node.op.rpartition(".")[2]).control_flow


def is_barrier(node: Node) -> bool:
    """Whether no region reaches across ``node``."""
    return (node.operator.is_barrier or _is_control_flow(node)) and not shrinks(node)


def _entries(anchor: Node) -> Iterator[Value]:
    """Values upstream of the anchor that have room for a norm's axes, nearest first."""
    seen: set[Value] = set()
    level = anchor.dynamic_inputs()
    while level and len(seen) < _BEFORE:
        fresh = [v for v in dict.fromkeys(level) if v not in seen]
        seen.update(fresh)
        yield from (v for v in fresh if v.shape and max(v.shape) > 1 and _is_number(v))
        level = [
            w
            for v in fresh
            if v.producer is not None and not is_barrier(v.producer)
            for w in v.producer.dynamic_inputs()
        ]


def _is_number(value: Value) -> bool:
    return value.dtype is None or value.dtype.kind not in "iu"


def _between(anchor: Node, entry: Value) -> tuple[dict[Node, None], dict[Node, None]] | None:
    """The nodes from ``entry`` to the anchor, and the Shape nodes elsewhere that they read, each in
    the order in which they are met.

    None if anything else that is dynamic flows in.
    """
    nodes, sizes, pending = dict.fromkeys([anchor]), dict[Node, None](), [anchor]
    while pending:
        for value in pending.pop().dynamic_inputs():
            node = value.producer
            if value is entry or node in nodes:
                continue
            if node is None or len(nodes) > _BEFORE:
                return None
            if node.op == "Shape" and node.data_input() is not entry:
                sizes[node] = None
                continue
            nodes[node] = None
            pending.append(node)
    inner = [n for n in sizes if n.data_input().producer in nodes]  # they depend on the entry
    nodes |= dict.fromkeys(inner)
    return nodes, {n: None for n in sizes if n not in nodes}


def _condenses(anchor: Node, entry: Value, nodes: Iterable[Node]) -> bool:
    """Whether fewer numbers than the entry has lie on the way to the anchor: a statistic."""
    if "Norm" in anchor.op:
        return True  # an operator that takes its statistics inside
    sizes = [math.prod(v.shape) for n in nodes for v in n.outputs if v.shape is not None]
    return min(sizes, default=0) < math.prod(entry.shape or ())


def _sizes_behind(value: Value) -> dict[Node, None] | None:
    """The Shape nodes that a value is computed from; None if anything else that is dynamic."""
    shapes: dict[Node, None] = {}
    pending, seen = [value], set[Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer
        if node is None or len(seen) > _BEFORE:
            return None
        if node.op == "Shape":
            shapes[node] = None
        elif _counts(node):
            return None
        else:
            pending.extend(node.dynamic_inputs())
    return shapes


def _counts(node: Node) -> bool:
    """Whether an integer that the graph computes becomes a number, not a shape."""
    if node.operator.takes_sizes or not _is_number(node.output):
        return False
    return any(not _is_number(value) for value in node.dynamic_inputs())
