"""From a validation that failed to the first place at which the models part, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.model import Model
from normswap.norms.site import Site
from normswap.parity.batches import has_dynamic_batch
from normswap.parity.bisect import Bisector, Parting
from normswap.parity.pairing import Pair, RunFailed, matched_inputs
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
    inputs = matched_inputs(reference, candidate)
    pair = Pair(reference, candidate)
    bisector = Bisector(reference, candidate, inputs, sites)
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
    return set(graph.ancestors([graph.value(site.output)], [graph.value(site.input)]))
