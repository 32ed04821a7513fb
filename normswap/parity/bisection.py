"""From a validation that failed to the first place at which the models part, in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.graph.linear import linear_at
from normswap.model import Model
from normswap.norms.site import Site, site_nodes
from normswap.parity.batches import has_dynamic_batch
from normswap.parity.equal_values import Candidates, Known
from normswap.parity.evaluations import value_runner
from normswap.parity.neighbours import Neighbours
from normswap.parity.pairing import Pair, RunFailed, feeds_for
from normswap.parity.probes import Probe
from normswap.parity.report import Bisection, ValidationReport
from normswap.parity.site_pairs import SitePair

Feeds = Mapping[str, Array]


def bisected(
    reference: Model,
    candidate: Model,
    sites: Sequence[Site],
    pairs: Sequence[SitePair],
    probes: Sequence[Probe],
    report: ValidationReport,
) -> tuple[Bisection, Feeds | None]:
    """The parting, and the inputs that show it: one row of a batch where one shows it.

    ``sites``: the reference's norms, ``pairs`` those that are matched. ``probes``: what the
    ``report`` was made with. A report without anything to look for gives a bisection that says so.
    """
    worst = _first_wrong(pairs, report)
    starts = [values for values in (worst, _differing(reference, report)) if values]
    if not starts:
        return Bisection(None, note="the models agree: there is no parting to look for"), None
    pair = Pair(reference, candidate)
    bisector = Bisector(reference, candidate, sites)
    failure = ""
    for probe in _likely(probes, report):
        try:
            for feeds in _rows_first(pair, probe.feeds):
                for values in starts:
                    parting = bisector.parting(feeds, values)
                    if parting.node is not None:
                        return _described(parting, reference, sites, probe.name), feeds
        except RunFailed as error:
            failure = failure or f"a model cannot be run up to its inner values: {error}"
    alone = next((s for s in report.sites if s.passed is False and s.at == "output"), None)
    if alone is not None:
        note = "no input of the model showed it; the norm itself differs on inputs of its own"
        return Bisection(alone.name, norm=alone.name, probe=alone.probe, note=note), None
    nothing = "every value of the reference has an equal in the candidate's graph"
    return Bisection(None, note=failure or nothing), None


def _first_wrong(pairs: Sequence[SitePair], report: ValidationReport) -> list[Value]:
    """What was compared at the first norm that fails: an error is clearer there than at the end."""
    failed = {site.name for site in report.sites if site.passed is False}
    if not any(finding.fatal for finding in report.findings):
        return []
    return [pair.ours for pair in pairs if pair.site.name in failed][:1]


def _differing(reference: Model, report: ValidationReport) -> list[Value]:
    """The outputs with a fatal finding; under the approximate contract all outputs that are not
    bit-equal."""
    fatal = [f for f in report.findings if f.fatal]
    named: set[str | None] = {finding.output for finding in fatal}
    if report.contract == "approximate":
        named = {output.name for output in report.outputs}
        named -= {f.output for f in report.findings if f.kind == "identical"}
    outputs = zip(reference.output_names, reference.graph.outputs, strict=True)
    found = [value for name, value in outputs if name in named]
    if not found and any(finding.output is None for finding in fatal):
        found = list(reference.graph.outputs)
    return found


def _likely(probes: Sequence[Probe], report: ValidationReport) -> Iterator[Probe]:
    """The probes that something fatal was found on, in their order (the tame ones come first, and
    in them an error stands out at once); then the others."""
    shown = {finding.probe for finding in report.findings if finding.fatal}
    yield from (probe for probe in probes if probe.name in shown)
    yield from (probe for probe in probes if probe.name not in shown)


def _rows_first(pair: Pair, feeds: Feeds) -> Iterator[Feeds]:
    """The row whose outputs differ most, where a batch may have one row; then the whole batch."""
    if has_dynamic_batch(pair.reference) and all(len(array) > 1 for array in feeds.values()):
        row = _worst_row(pair, feeds)
        if row is not None:
            yield {name: array[row : row + 1] for name, array in feeds.items()}
    yield feeds


def _worst_row(pair: Pair, feeds: Feeds) -> int | None:
    results = pair.run(feeds, "bisection")
    if results is None:
        return None
    rows = len(next(iter(feeds.values())))
    total = np.zeros(rows)
    for own, other in zip(*results, strict=True):
        if own.shape != other.shape or own.ndim == 0 or len(own) != rows:
            continue
        a, b = (np.asarray(x, np.float64).reshape(rows, -1) for x in (own, other))
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(a - b).max(-1) / max(float(np.abs(a).max()), 1e-300)
        total += np.nan_to_num(error, nan=np.inf)
    return int(total.argmax()) if total.any() else None


def _described(parting: Parting, model: Model, sites: Sequence[Site], probe: str) -> Bisection:
    """In which norm or module, and between which norms in depth."""
    node, graph = parting.node, model.graph
    assert node is not None
    norm = next((s.name for s in sites if node in _inside(graph, s)), None)
    before = set(graph.ancestors([node.output]))
    after = graph.descendants([node.output])
    others = [site for site in sites if site.name != norm]
    passed = [s.name for s in others if graph.value(s.output).producer in before]
    ahead = [s.name for s in others if graph.value(s.output) in after]
    return Bisection(
        norm or node.scope or node.output.name,
        node.op,
        node.output.name,
        norm,
        [value.name for value in node.dynamic_inputs()],
        passed[-1] if passed else None,
        ahead[0] if ahead else None,
        parting.error,
        parting.allowed,
        probe,
    )


def _inside(graph: Graph, site: Site) -> set[Node]:
    return set(site_nodes(graph, site))


_DRAWS = 3  # of the reference's neighbours, to know its rounding at a value
_HELD = 2**27  # elements of all values of one model that are looked at together
_AHEAD = 200  # values of the candidate that are looked at for a region of the reference


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
    """

    def __init__(self, reference: Model, candidate: Model, sites: Sequence[Site]) -> None:
        self._reference, self._candidate = reference, candidate
        self._feeds = feeds_for(reference, candidate)
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
        arrays = value_runner(self._candidate, others)(self._feeds(feeds))
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
    kept = node.operator.keeps_channels or node.operator.combines_two
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
