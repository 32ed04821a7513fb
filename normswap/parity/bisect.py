"""The first place at which two models part."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.arrays import is_floating
from normswap.graph.graph import Array, Graph, Node, Value
from normswap.graph.linear import linear_at
from normswap.model import Model
from normswap.norms.site import Site
from normswap.parity.equal_values import Candidates, Known
from normswap.parity.neighbours import Neighbours
from normswap.parity.site_errors import value_runner

_DRAWS = 3  # of the reference's neighbours, to know its rounding at a value
_HELD = 2**27  # elements of all values of one model that are looked at together
_AHEAD = 200  # values of the candidate that are looked at for a region of the reference
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Parting:
    """Where two models part on one set of inputs: the reference's operator (None: nowhere), with
    the largest error at its output and what is allowed there, where the candidate has a value of
    that shape."""

    node: Node | None
    error: float | None = None
    allowed: float | None = None


class Bisector:
    """Looks for the first value of the reference that the candidate does not have.

    From the values that differ (``starts``), upwards through all that has no equal in the
    candidate: where everything that an operator reads has one, the models part. Values that a
    rewrite moved into the next weights are passed over, since what those give is there again.
    Long models are looked at twice: at sums, norms and linear layers, then at all values between.
    ``inputs``: the candidate's input for each of the reference's.
    """

    def __init__(
        self, reference: Model, candidate: Model, inputs: Mapping[str, str], sites: Sequence[Site]
    ) -> None:
        self._reference, self._candidate, self._inputs = reference, candidate, inputs
        self._graph = reference.graph
        self._order = {node: index for index, node in enumerate(self._graph.nodes)}
        self._ends = {self._graph.value(name) for s in sites for name in (s.input, s.output)}

    def parting(self, feeds: Feeds, starts: Sequence[Value]) -> Parting:
        """Raises RunFailed where one of the models cannot be run."""
        region = self._graph.ancestors(starts)
        others = _computed(self._candidate.graph.nodes)
        if _elements(_computed(region)) > _HELD:
            coarse = self._search(feeds, starts, self._coarse(region), _landmarks(others))
            if coarse.first is None:
                return Parting(None)
            stops = [value for value, equal in coarse.equal.items() if equal is not None]
            starts = [coarse.first.output]
            region = self._graph.ancestors(starts, stops)
            ahead = self._candidate.graph.descendants(filter(None, coarse.equal.values()))
            others = [value for value in others if value in ahead][:_AHEAD]
            others += [v for v in coarse.equal.values() if v is not None]
            values = _computed(region) + [v for n in region for v in n.inputs if v in coarse.equal]
            fine = self._search(feeds, starts, list(dict.fromkeys(values)), others)
            return fine.parting(coarse.first)
        return self._search(feeds, starts, _computed(region), others).parting(None)

    def _coarse(self, region: Sequence[Node]) -> list[Value]:
        values = _computed(region)
        wanted = self._ends.union(_landmarks(values))
        return [value for value in values if value in wanted]

    def _search(
        self, feeds: Feeds, starts: Sequence[Value], ours: Sequence[Value], others: Sequence[Value]
    ) -> _Search:
        known = self._known(feeds, ours)
        renamed = {self._inputs[name]: array for name, array in feeds.items()}
        arrays = value_runner(self._candidate, others)(renamed)
        floats = [(v, a) for v, a in zip(others, arrays, strict=True) if is_floating(a.dtype)]
        candidates = Candidates([v for v, _ in floats], [a for _, a in floats])
        return _Search(self._graph, self._order, starts, known, candidates)

    def _known(self, feeds: Feeds, values: Sequence[Value]) -> dict[Value, Known]:
        truths = value_runner(self._reference, values, np.float64)(feeds)
        runs = [value_runner(self._reference, values)(feeds)]
        try:
            neighbours = Neighbours(self._reference, values)
            runs += [neighbours.run(feeds, draw) for draw in range(_DRAWS)]
        except NormswapError:  # then the reference's own error is all there is
            pass
        found = {}
        for index, (value, truth) in enumerate(zip(values, truths, strict=True)):
            own = [run[index] for run in runs]
            if is_floating(own[0].dtype) and all(run.shape == truth.shape for run in own):
                found[value] = Known.of(np.asarray(truth, np.float64), own)
        return found


class _Search:
    """The values with equals, and the first without, among those that are known."""

    def __init__(
        self,
        graph: Graph,
        order: Mapping[Node, int],
        starts: Sequence[Value],
        known: Mapping[Value, Known],
        candidates: Candidates,
    ) -> None:
        self._graph, self._order = graph, order
        self._known, self._candidates = known, candidates
        self.equal = {value: candidates.equal_of(found) for value, found in known.items()}
        self._fine = {value for value, equal in self.equal.items() if equal is not None}
        self._fine |= set(graph.inputs)
        self._pass_over_moved()
        self.first = self._first(starts)

    def parting(self, otherwise: Node | None) -> Parting:
        node = self.first or otherwise
        if node is None or node.output not in self._known:
            return Parting(node)
        known = self._known[node.output]
        error = self._candidates.least_error(known)
        return Parting(node, error, None if error is None else known.allowed)

    def _pass_over_moved(self) -> None:
        """A value that is found again behind a linear layer or a move was itself the same."""
        for node in reversed(list(self._order)):
            if not any(value in self._fine for value in node.outputs):
                continue
            read = _carried(self._graph, node)
            if read is not None:
                self._fine.add(read)

    def _first(self, starts: Sequence[Value]) -> Node | None:
        """The first operator that reads nothing but what has an equal and gives what has none.

        Values that are not known (between landmarks, integers) are looked through.
        """
        suspects = {*self._known, *starts}
        found: list[Node] = []
        unequal: set[Value] = set()  # and all that is computed from such
        for node in self._graph.ancestors(starts, self._fine):  # each behind those that it reads
            lost = [v for v in node.outputs if v not in self._fine and v in suspects]
            later = any(value in unequal for value in node.dynamic_inputs())
            if lost and not later:
                found.append(node)
            if lost or later:
                unequal.update(v for v in node.outputs if v not in self._fine)
        return min(found, key=self._order.__getitem__, default=None)


def _carried(graph: Graph, node: Node) -> Value | None:
    """What a linear layer, a sum with a constant or a move reads, if nothing of it gets lost."""
    dynamic = node.dynamic_inputs()
    if len(dynamic) != 1:
        return None
    linear = linear_at(graph, node)
    if linear is not None:
        return linear.input if linear.sizes[0] >= linear.sizes[1] else None
    kept = node.operator.carries or node.operator.combines_two
    sizes = [math.prod(v.shape or (0,)) for v in (dynamic[0], node.output)]
    return dynamic[0] if kept and sizes[0] == sizes[1] else None


def _computed(nodes: Iterable[Node]) -> list[Value]:
    """The values with names that ``nodes`` compute, but not constants."""
    return [v for node in nodes for v in node.outputs if v.name and not v.is_constant]


def _landmarks(values: Collection[Value]) -> list[Value]:
    """Sums of two streams, linear layers and norms."""
    return [v for v in values if v.producer is not None and _is_landmark(v.producer)]


def _is_landmark(node: Node) -> bool:
    if node.op == "Add":
        return len(node.dynamic_inputs()) <= 2
    return bool(node.operator.product or node.operator.norm) or node.op == "Mul"


def _elements(values: Iterable[Value]) -> int:
    return sum(math.prod(value.shape or (1,)) for value in values)
