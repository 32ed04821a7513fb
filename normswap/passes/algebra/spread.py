"""A map of one value spreads through the graph: what else changes, and how it is absorbed.

A value v that changes is written anew as v' with v = A v' + t (*downward*: readers have to apply
the map) or v' = A v + t (*upward*: writers have to). From there the map goes from operator to
operator by the table in ``rules.py`` until weights absorb it. Without its inverse it may only be
absorbed in the form that it has: downward by readers, upward by writers. With the inverse, whole
streams change their variables: what readers undo is applied in everything else that writes into
the stream. Nothing is edited before the whole change is known to be absorbed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.graph.linear import Convolution
from normswap.norms.site import Site, site_nodes
from normswap.passes.algebra.channel_map import Affine, ChannelMap
from normswap.passes.algebra.narrow import Holds, crosses, nothing_more
from normswap.passes.algebra.place import Place, Rule, Unseen
from normswap.passes.algebra.rules import rule_of
from normswap.passes.algebra.weight_edits import Variables, Weight, WeightEdits
from normswap.passes.base import Refusal, called

# Measured: with a full matrix in float32 and float16 the error of a stream in new variables stays
# within the exact contract up to 8 and leaves it at 16. A diagonal one costs nothing at any spread
# that the exponents hold.
_CONDITION = 10.0


def nodes_of(graph: Graph, site: Site) -> list[Node]:
    """The nodes of a site that compute with data."""
    return [node for node in site_nodes(graph, site) if node.dynamic_inputs()]


def norm_nodes(graph: Graph, sites: Sequence[Site]) -> frozenset[Node]:
    """All that norms consist of."""
    return frozenset(node for site in sites for node in nodes_of(graph, site))


class Norms:
    """The norms of a graph that do not see a map, by the row of their kind in ``rules.py``.

    ``reasons``: norms of such a kind that see it all the same, with the reason. ``outputs``: the
    others by their output, ``readers``: by the nodes that they consist of, with their input.
    """

    def __init__(self, graph: Graph, sites: Sequence[Site], unseen: Unseen) -> None:
        self.unseen = unseen
        self.reasons: dict[Site, str] = {}
        self.outputs: dict[Value, Site] = {}
        self.readers: dict[Node, list[tuple[Value, Site]]] = {}
        kinds = [s for s in sites if unseen in rule_of(s.kind).unseen and not s.fixed]
        nodes = {site: nodes_of(graph, site) for site in kinds}
        inside = {node for own in nodes.values() for node in own}
        for site, own in nodes.items():
            x, y = graph.value(site.input), graph.value(site.output)
            inner = [v for node in own for v in node.outputs if v is not y]
            leak = next((v for v in inner if not set(v.readers) <= inside), None)
            leak = leak or next((v for v in inner if v in graph.outputs), None)
            self.outputs[y] = site
            if x.shape is None or y.shape is None:
                self.reasons[site] = "the shape of its input is not known"
            elif len(site.axes) != 1:
                self.reasons[site] = "it normalises over several axes"
            elif leak is not None:
                self.reasons[site] = f"'{leak.name}' in its spelling is read elsewhere too"
            else:
                for node in own:
                    self.readers.setdefault(node, []).append((x, site))

    def do_not_see(self, change: ChannelMap, site: Site) -> bool:
        """Whether ``change`` of its input is a map that ``site`` does not see."""
        return self.unseen.holds(change, site)


@dataclass(frozen=True)
class Start:
    """Where a change starts: ``value`` changes by ``change``, downward or upward.

    ``around``: the nodes between a removed map's input and output, which are left alone.
    ``unchanged``: the value at the other end of it, if there is one. ``closed``: nodes that refuse
    every map. ``norms``: norms that do not see the map, whose other nodes follow no other rule.
    ``joins``: products that can join their writer do so, and are gone (LayerScale). ``leaves``:
    outputs of the model may change, for the pass to undo it in front of them. ``held``: the dtypes
    that hold what takes the place of ``value``. ``bounded``: no value becomes so large or so small
    by the change that its dtype would not hold it. ``apart``: norms that stay as they are, for the
    pass to undo the map in front of them and to apply it behind them.
    """

    value: Value
    change: ChannelMap
    downward: bool
    around: frozenset[Node] = frozenset()
    unchanged: Value | None = None
    closed: Collection[Node] = frozenset()
    norms: Norms | None = None
    joins: bool = False
    leaves: bool = False
    held: Holds = nothing_more
    bounded: bool = False
    apart: Collection[Site] = ()


class Spread:
    """A change with all that follows from it; nothing of the graph is edited before ``act``.

    ``refusal``: why it cannot be made, '' if it can. ``known``: the values that it has reached,
    with their maps. ``behind``: outputs of norms that would have to change, with their norm, and
    ``in_front``: norms for which it has to be undone; both are for the pass to do.
    """

    def __init__(self, edits: WeightEdits, start: Start, part: bool) -> None:
        self.graph, self.edits, self.start = edits.graph, edits, start
        self.refused: Refusal | None = None
        self.known: dict[Value, ChannelMap] = {}
        self.behind: dict[Value, Site] = {}
        self.in_front: dict[Site, None] = {}
        self._part, self._inverts = part, start.change.inverse is not None
        self._condition = start.change.condition if self._inverts else 1.0
        self._weights: dict[Weight, None] = {}
        self._constants: dict[tuple[Node, int], ChannelMap] = {}
        self._joined: dict[Node, None] = {}
        self._moved = {start.value}  # what only moves what takes the place of the value
        self._position = {node: i for i, node in enumerate(self.graph.nodes)}
        self._queue: list[int] = []
        self._actions: list[Callable[[], None]] = []
        try:
            self._run()
        except Refusal as refusal:
            self.refused = refusal

    @property
    def refusal(self) -> str:
        return "" if self.refused is None else str(self.refused)

    def checked(self) -> Spread:
        """Itself. Raises Refusal where it cannot be made."""
        if self.refused is not None:
            raise self.refused
        return self

    def act(self) -> None:
        """Makes the change: edits of weights and constants are collected, joined products go."""
        for action in self._actions:
            action()
        for node in self._joined:
            self.graph.replace_uses(node.output, node.dynamic_inputs()[0])

    def reaches(self, site: Site) -> bool:
        """Whether the input of ``site`` changes by a map that the norm does not see."""
        norms, change = self.start.norms, self.known.get(self.graph.value(site.input))
        if norms is None or change is None or site in self.start.apart:
            return False
        return norms.do_not_see(change, site)

    def readers(self) -> Iterator[tuple[Weight, Affine]]:
        """The weights that read what changes, with the map of their own input channels."""
        for weight in self._weights:
            if weight.input in self.known:
                change = self._for_readers(self.known[weight.input])
                found = change.on(weight.axis, weight.sizes[1])
                assert found is not None  # else the change would be refused
                yield weight, found

    # -- from operator to operator -------------------------------------------------------------

    def _run(self) -> None:
        self._set(self.start.value, self.start.change)
        while self._queue:  # in the graph's order, so that operands are known before their sum
            node = self.graph.nodes[heapq.heappop(self._queue)]
            while self._queue and self._queue[0] == self._position[node]:
                heapq.heappop(self._queue)
            self._visit(node)
        self._actions = [self._absorbed(weight) for weight in self._weights]
        for (node, index), change in self._constants.items():
            written = self._for_writers(change)
            self._actions.append(self.edits.changing_constant(node, index, written))

    def _set(self, value: Value, change: ChannelMap) -> None:
        """Notes the map of a value, or checks it against the one that is known."""
        if not change.is_finite:
            raise Refusal("it holds numbers that are not finite")
        change = change.compact()
        if value in self.known:
            if not self.known[value].is_same(change):
                raise Refusal(f"'{value.name}' would have to change in two ways")
            return
        if change.is_neutral():
            return  # what reads it checks that it stays so
        if value is self.start.unchanged:
            raise Refusal(f"'{value.name}' would have to change too")
        if value in self.graph.outputs and not self.start.leaves:
            raise Refusal(f"'{value.name}' is an output of the model")
        if value.producer is None:
            raise Refusal(f"'{value.name}' is an input of the model")
        self.known[value] = change
        for node in [value.producer, *value.readers]:
            if node not in self.start.around:
                heapq.heappush(self._queue, self._position[node])

    def _visit(self, node: Node) -> None:
        start = self.start
        place = Place(self.edits, node, self.known, start.downward, self._inverts, self._part)
        if node in start.closed:
            raise place.refusal()
        if start.norms is not None and node in start.norms.readers:
            self._meet_norm(start.norms, place)
        elif (weight := self.edits.weight_of(node)) is not None:
            self._meet_weight(weight, place)
        else:
            self._go_through(rule_of(node.op), place)

    def _go_through(self, rule: Rule, place: Place) -> None:
        joined = rule.joins(place) if self.start.joins and rule.joins is not None else None
        if joined is not None:
            self._set(*joined)
            self._joined[place.node] = None
            return
        node = place.node
        known = [v for v in (*node.dynamic_inputs(), *node.outputs) if v in self.known]
        for target, change in rule.maps(place):
            if isinstance(target, Value):
                self._check_dtype(node, known, target, change)
                self._set(target, change)
            else:
                self._constants[node, target] = change

    def _check_dtype(
        self, node: Node, known: Sequence[Value], target: Value, change: ChannelMap
    ) -> None:
        """Refuses to let a narrower dtype than the map came from hold what it makes of a value."""
        operator = node.operator
        moves = operator.passes_through or operator.move in ("split", "gather", "roll", "tile")
        moved = moves and not self._moved.isdisjoint(known)
        if moved:
            self._moved.add(target)
        if self.start.bounded or target in self.known or target.dtype is None:
            return
        if moved and self.start.held(target.dtype):
            return
        wide = next((v for v in known if crosses(change, target.dtype, v.dtype)), None)
        if wide is not None:
            raise Refusal(
                f"'{target.name}' is {target.dtype}, which may not hold what {wide.dtype} holds in "
                f"'{wide.name}'"
            )

    def _meet_weight(self, weight: Weight, place: Place) -> None:
        if any(v in self.known and v is not weight.input for v in place.node.dynamic_inputs()):
            raise place.refusal()
        wrong_way = weight.output if self.start.downward else weight.input
        if not self._inverts and wrong_way in self.known:
            done = "written" if self.start.downward else "read"
            raise Refusal(
                f"'{wrong_way.name}' is {done} elsewhere too, by {called(_product(weight))}"
            )
        self._weights[weight] = None

    def _meet_norm(self, norms: Norms, place: Place) -> None:
        for value in (v for v in place.node.outputs if v in self.known):
            site = norms.outputs.get(value)
            if site is not None and site in self.start.apart:
                self.behind[value] = site
                continue
            if site is None or not norms.do_not_see(self.known[value], site):
                raise place.refusal()
            if norms.unseen.commutes:
                self._set(self.graph.value(site.input), self.known[value])
            else:
                self.behind[value] = site
        for value in (v for v in place.node.dynamic_inputs() if v in self.known):
            readers = [site for x, site in norms.readers[place.node] if x is value]
            apart = [site for site in readers if site in self.start.apart]
            self.in_front |= dict.fromkeys(apart)
            readers = [site for site in readers if norms.do_not_see(self.known[value], site)]
            readers = [site for site in readers if site not in apart]
            if not readers and not apart:
                raise place.refusal()
            for site in readers if norms.unseen.commutes else ():
                self._set(self.graph.value(site.output), self.known[value])

    # -- what absorbs it -----------------------------------------------------------------------

    def _for_readers(self, change: ChannelMap) -> ChannelMap:
        return change if self.start.downward else change.inverted()

    def _for_writers(self, change: ChannelMap) -> ChannelMap:
        return change.inverted() if self.start.downward else change

    def _absorbed(self, weight: Weight) -> Callable[[], None]:
        """The edit of a weight. Raises Refusal where it cannot absorb its part."""
        out, into = weight.sizes
        reads = writes = None
        if weight.input in self.known:
            change = self._for_readers(self.known[weight.input])
            reads = change.on(weight.axis, into)
            if reads is None:
                raise Refusal(f"'{weight.name}' multiplies along another axis")
            if weight.moves_shifts and change.shifts:
                raise Refusal(f"the convolution '{weight.name}' {weight.moves_shifts}")
        if weight.output in self.known:
            writes = self._for_writers(self.known[weight.output]).on(weight.output_axis, out)
            if writes is None:
                raise Refusal(f"'{weight.name}' writes its channels to another axis")
        if weight.groups > 1 and any(a and a.linear.ndim == 2 for a in (reads, writes)):
            raise Refusal(f"the convolution '{weight.name}' keeps groups of channels apart")
        seen = self.edits.variables(weight)
        if self._inverts:
            seen = Variables.of(reads, writes, self._condition).after(seen)
            self._check(seen)
        return self.edits.absorbing(weight, reads, writes, seen)

    def _check(self, seen: Variables) -> None:
        """Refuses new variables that the model's precision does not hold."""
        if seen.condition > _CONDITION:
            found = f"its condition number comes to {seen.condition:.3g}"
            raise Refusal(f"{found}; above {_CONDITION:g}, rounding errors grow too much")
        largest = _largest(self.start.value)
        for size in (np.asarray(seen.reads), np.asarray(seen.writes)):
            if np.any(size > largest) or np.any(size < 1 / largest):
                found = f"scales would come to lie between {size.min():.3g} and {size.max():.3g}"
                raise Refusal(f"{found}, too far apart for {self.start.value.dtype}")


def _product(weight: Weight) -> Node:
    return weight.node if isinstance(weight, Convolution) else weight.product


def _largest(value: Value) -> float:
    """The square root of what the dtype can hold: room for the values themselves."""
    dtype = value.dtype if value.dtype is not None else np.dtype(np.float32)
    return float(np.sqrt(float(ml_dtypes.finfo(dtype).max)))


def spread(edits: WeightEdits, start: Start, or_part: bool = False) -> Spread:
    """The change that starts at ``start``, or why it cannot be made (its ``refusal``).

    ``or_part``: where it cannot, it is tried once more with the map of a part of a value (the class
    token, the queries of packed heads) concerning that part alone.
    """
    whole = Spread(edits, start, part=False)
    if not whole.refusal or not or_part:
        return whole
    part = Spread(edits, start, part=True)
    return whole if part.refusal else part


def streams(
    edits: WeightEdits, norms: Norms, sites: Sequence[Site], start: Callable[[Site], Start]
) -> Iterator[tuple[Spread, list[Site]]]:
    """One change for every stream that ``sites`` read, with those that it reaches.

    ``start``: at the input of a site. A change may be made (``act``) before the next is asked for.
    """
    settled: set[Site] = set(norms.reasons)
    for site in sites:
        if site not in settled:
            change = spread(edits, start(site), or_part=True)
            stream = [s for s in sites if s is site or change.reaches(s)]
            settled.update(stream)
            yield change, stream
