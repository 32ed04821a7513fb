"""What of a graph is an affine map per channel, y = A x + t, and could be folded into weights.

* BatchNorms in evaluation mode.
* Products, quotients, sums and differences with constants per channel (LayerScale), with scalars
  among them, and sums of such maps of one value (SLAB's BN(x) + alpha x): with a BatchNorm in it,
  the region is that site, else a site of kind 'scale_shift'.
* Square linear layers, which may be merged with a neighbour: 'affine'.

No part of it: scalars alone (attention's scaling, GELU's constants: runtimes match these), the bias
of a linear layer, the constants inside another norm, constants over several axes (positions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.graph.linear import Linear
from normswap.norms.site import Site, site_name
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.place import Arithmetic
from normswap.passes.algebra.rules import PRODUCT_OF_VALUES, SUM, TAKES_PART, rule_of
from normswap.passes.algebra.spread import nodes_of, norm_nodes
from normswap.passes.algebra.weight_edits import WeightEdits


@dataclass(frozen=True, eq=False)
class AffineRegion:
    """An affine map per channel from ``entry`` to ``exit``.

    ``sites``: what it is called in reports. ``nodes``: all between entry and exit. ``refusal``: why
    it is none after all.
    """

    sites: tuple[Site, ...]
    entry: Value
    exit: Value
    nodes: frozenset[Node]
    compute: Callable[[], ChannelMap]
    refusal: str = ""

    @property
    def is_square(self) -> bool:
        return self.sites[0].kind == "affine"


def affine_regions(
    graph: Graph, edits: WeightEdits, norms: Sequence[Site], inside: Set[Node]
) -> list[AffineRegion]:
    """The regions in the order of execution; ``norms``: the BatchNorms that may be part of one,
    ``inside``: nodes that may not."""
    found = [*_Finder(graph, edits, norms, inside).regions(), *_squares(graph, edits, inside)]
    order = {node.output: i for i, node in enumerate(graph.nodes)}
    return sorted(found, key=lambda r: order[r.exit.producer.output] if r.exit.producer else -1)


def batch_norm_map(graph: Graph, site: Site, rank: int) -> ChannelMap:
    """y = s x + t with s = gamma / sqrt(var + eps) and t = beta - s mean."""
    assert site.mean is not None  # a batch_norm site has statistics
    assert site.variance is not None
    # The site has the decimal that was meant; an operator adds what its attribute holds of it.
    epsilon = graph.as_attribute(site.epsilon) if site.spelling == "op" else site.epsilon
    scale = 1 / np.sqrt(site.variance + epsilon)
    scale = scale if site.weight is None else scale * site.weight
    shift = -scale * site.mean
    shift = shift if site.bias is None else shift + site.bias
    return ChannelMap.along(scale, shift, site.axes[0], rank)


@dataclass(frozen=True)
class _Step:
    """A BatchNorm, or one operator: all its nodes, and what is read, None for a constant."""

    norm: Site | None
    nodes: tuple[Node, ...]
    reads: tuple[Value | None, ...]

    @property
    def output(self) -> Value:
        return self.nodes[-1].output


@dataclass(frozen=True)
class _Chain:
    """Steps from ``root`` on: the axis they are about, and whether anything is scaled along it."""

    root: Value
    steps: tuple[_Step, ...] = ()
    axis: int | None = None
    scales: bool = False

    @property
    def norms(self) -> tuple[Site, ...]:
        return tuple(step.norm for step in self.steps if step.norm is not None)


class _Finder:
    def __init__(
        self, graph: Graph, edits: WeightEdits, norms: Sequence[Site], inside: Set[Node]
    ) -> None:
        self.graph, self.edits = graph, edits
        self.norms = {graph.value(site.output): site for site in norms}
        self.blocked = inside | norm_nodes(graph, norms)
        self.chains: dict[Value, _Chain] = {}

    def regions(self) -> Iterator[AffineRegion]:
        for node in self.graph.nodes:
            if node.output in self.norms:
                self._add_norm(self.norms[node.output])
            elif node not in self.blocked and (arithmetic := rule_of(node.op).arithmetic):
                self._add_operator(node, arithmetic)
        for end, chain in self.chains.items():
            if chain.axis is not None and (chain.norms or _has_channels(chain)):
                yield self._region(end, chain)

    # -- growing chains ------------------------------------------------------------------------

    def _add_norm(self, site: Site) -> None:
        x, y = self.graph.value(site.input), self.graph.value(site.output)
        step = _Step(site, tuple(nodes_of(self.graph, site)), (x,))
        if any(node.attributes.get("training_mode") for node in step.nodes):
            self.chains[y] = _Chain(x, (step,), site.axes[0], True)
            return
        chain = self._extensible(x, step.nodes)
        if chain.axis not in (None, site.axes[0]):
            chain = _Chain(x)
        self._extend(step, [chain], site.axes[0], True)

    def _add_operator(self, node: Node, arithmetic: Arithmetic) -> None:
        reads = tuple(v if v is not None and not v.is_constant else None for v in node.inputs)
        step, data = _Step(None, (node,), reads), node.dynamic_inputs()
        weight, y = self.edits.weight_of(node), node.output
        if y.is_constant or weight is not None or not data or y.shape is None:
            return
        constants = [i for i, value in enumerate(reads) if value is None]
        shapes = [self.edits.constant_shape(node, i) for i in constants]
        axes = {a for shape in shapes for a in _wide_axes(shape, len(y.shape))}
        if any(v.shape != y.shape for v in data) or len(axes) > 1:
            return
        if not all(np.isfinite(self.edits.constant(node, i)).all() for i in constants):
            return  # a mask
        scales = arithmetic.factor is not None
        if scales and len(data) > 1:
            return
        if any(v is not None for v in reads[len(arithmetic.signs) :]):  # divided by the value
            return
        axis = next(iter(axes), None)
        for chains in self._candidates(data, node):
            if len({c.root for c in chains}) == 1:
                known = {c.axis for c in chains if c.axis is not None} | axes
                if len(known) <= 1:
                    self._extend(step, chains, axis, scales)
                    return

    def _candidates(self, data: Sequence[Value], node: Node) -> Iterator[list[_Chain]]:
        """Each operand as the end of a chain, or as the value where a new one starts."""
        first = [self._extensible(data[0], [node]), _Chain(data[0])]
        if len(data) == 1:
            yield from ([chain] for chain in first)
            return
        second = [self._extensible(data[1], [node]), _Chain(data[1])]
        yield from ([one, other] for one in first for other in second)

    def _extensible(self, value: Value, nodes: Sequence[Node]) -> _Chain:
        """The chain that ends at ``value``, if only ``nodes`` read that."""
        chain = self.chains.get(value)
        alone = value not in self.graph.outputs and set(value.readers) <= set(nodes)
        if chain is None or not alone or any(map(_trains, chain.steps)):
            return _Chain(value)
        return chain

    def _extend(
        self, step: _Step, chains: Sequence[_Chain], axis: int | None, scales: bool
    ) -> None:
        for chain in chains:
            if chain.steps:
                self.chains.pop(chain.steps[-1].output, None)
        steps = tuple(dict.fromkeys(s for chain in chains for s in chain.steps))
        axes = [a for a in (axis, *(c.axis for c in chains)) if a is not None]
        scales = (scales and axis is not None) or any(c.scales for c in chains)
        chain = _Chain(chains[0].root, (*steps, step), axes[0] if axes else None, scales)
        self.chains[step.output] = chain

    # -- what a chain computes -----------------------------------------------------------------

    def _region(self, end: Value, chain: _Chain) -> AffineRegion:
        nodes = [node for step in chain.steps for node in step.nodes]
        training = any(map(_trains, chain.steps))
        compute = lambda: self._map(chain)  # noqa: E731
        region = AffineRegion(chain.norms, chain.root, end, frozenset(nodes), compute)
        if training:
            why = "it is in training mode: its statistics come from each batch"
            return replace(region, refusal=why)
        if chain.root.dtype != end.dtype:  # torch: float16 times a float32 is float32
            why = f"it reads {chain.root.dtype} and gives {end.dtype}"
            region = replace(region, refusal=why)
        if chain.norms:
            return region
        change, axis = compute(), chain.axis
        assert axis is not None
        size = (end.shape or ())[axis]
        values = change.on(axis, size)
        assert values is not None
        constants = [v for node in nodes for v in node.inputs if v is not None and v.is_constant]
        site = Site(
            name=site_name(nodes, constants),
            kind="scale_shift",
            axes=(axis,),
            normalized_shape=(size,),
            epsilon=0.0,
            weight=values.linear if chain.scales else None,
            bias=values.shift if change.shifts else None,
            input=chain.root.name,
            output=end.name,
            spelling="decomposed",
        )
        return replace(region, sites=(site,))

    def _map(self, chain: _Chain) -> ChannelMap:
        rank = len(chain.root.shape or ())
        one = (1,) * rank
        maps = {chain.root: ChannelMap(np.ones(one), np.zeros(one))}
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for step in chain.steps:
                if step.norm is not None:
                    (x,) = step.reads
                    assert x is not None
                    maps[step.output] = _after(batch_norm_map(self.graph, step.norm, rank), maps[x])
                else:
                    maps[step.output] = self._step_map(step, maps, rank)
        return maps[chain.steps[-1].output]

    def _step_map(self, step: _Step, maps: dict[Value, ChannelMap], rank: int) -> ChannelMap:
        (node,) = step.nodes
        arithmetic = rule_of(node.op).arithmetic
        assert arithmetic is not None  # or it were no step
        linear: Array = np.zeros((1,) * rank)
        shift, factor = linear, np.ones((1,) * rank)
        for index, value in enumerate(step.reads):
            if value is not None:
                linear = linear + arithmetic.signs[index] * maps[value].linear
                shift = shift + arithmetic.signs[index] * maps[value].shift
            elif arithmetic.factor is not None:
                factor = factor * arithmetic.factor(self.edits.constant(node, index))
            else:
                shift = shift + arithmetic.signs[index] * self.edits.constant(node, index)
        return ChannelMap(linear * factor, shift * factor)


def _after(second: ChannelMap, first: ChannelMap) -> ChannelMap:
    return ChannelMap(second.linear * first.linear, second.times(first.shift) + second.shift)


def _has_channels(chain: _Chain) -> bool:
    """Not the scores of an attention, which a constant per head may scale."""
    product, rank = chain.root.producer, chain.root.rank or 0
    computed = [] if product is None else product.dynamic_inputs()
    scores = product is not None and product.op == PRODUCT_OF_VALUES and len(computed) == 2
    return not scores or chain.axis == rank - 1


def _trains(step: _Step) -> bool:
    return any(node.attributes.get("training_mode") for node in step.nodes)


def _wide_axes(shape: tuple[int, ...] | None, rank: int) -> list[int]:
    """The axes of a value of ``rank`` axes along which a constant of ``shape`` may differ."""
    if shape is None or len(shape) > rank:
        return list(range(rank))
    return [rank - len(shape) + a for a, size in enumerate(shape) if size != 1]


def _squares(graph: Graph, edits: WeightEdits, inside: Set[Node]) -> Iterator[AffineRegion]:
    for node in graph.nodes:
        linear = edits.weight_at(node) if node not in inside else None
        if not isinstance(linear, Linear) or linear.sizes[0] != linear.sizes[1]:
            continue
        if linear.sizes[0] == 1:  # a number
            continue
        x, y = linear.input, linear.output
        if x.rank is None or x.rank != y.rank or linear.axis != linear.output_axis:
            continue
        yield _square(linear, x, y, edits)


def _square(linear: Linear, x: Value, y: Value, edits: WeightEdits) -> AffineRegion:
    nodes = [n for n in (linear.product, linear.adder) if n is not None]
    site = Site(
        name=site_name(nodes, [linear.stored_weight]),
        kind="affine",
        axes=(linear.axis,),
        normalized_shape=linear.sizes[:1],
        epsilon=0.0,
        weight=None,
        bias=None,
        input=x.name,
        output=y.name,
        spelling="op" if linear.adder is None else "decomposed",
    )

    def compute() -> ChannelMap:
        now = edits.current(linear)
        return ChannelMap.along(now.linear, now.shift, linear.axis, x.rank or 1)

    return AffineRegion((site,), x, y, frozenset(nodes), compute)


def ends_a_stream(value: Value) -> bool:
    """Whether a value that has one reader is a sum of computed values, or a part of such a sum
    that nothing else reads."""
    while len(value.readers) == 1 and (node := value.producer) is not None:
        if rule_of(node.op).arithmetic is SUM and len(node.dynamic_inputs()) == 2:
            return True
        if not node.operator.passes_through and node.op not in TAKES_PART:
            return False
        value = node.data_input()
    return False
