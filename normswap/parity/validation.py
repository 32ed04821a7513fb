"""``validate``: from two models to a report."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.atomic import atomic_path
from normswap.io.data import Data, load_data
from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.parity.answers import with_pictures
from normswap.parity.approximate import approximate_contract
from normswap.parity.batches import BATCH, batches_of, checked_labels, masks_of
from normswap.parity.bisection import bisected
from normswap.parity.certified import certified
from normswap.parity.chosen_runtimes import opened
from normswap.parity.exact import exact_contract
from normswap.parity.pairing import (
    Run,
    feeds_for,
    matched_positions,
    reported_failures,
    shared_inputs,
    shared_sizes,
)
from normswap.parity.probes import Effort, Probe, draw_feeds, make_probes
from normswap.parity.report import Finding, SiteRanges, ValidationReport
from normswap.parity.site_errors import SiteErrors, comparable, judged
from normswap.parity.site_pairs import Side, SitePair, pair_sites
from normswap.parity.summary import found_unchanged, model_summary, provenance
from normswap.precision.integers import INTEGER_FORMATS
from normswap.precision.quantised import QuantisedModel
from normswap.precision.ranges import measured
from normswap.precision.simulate import SimulatedModel, simulated
from normswap.runtimes.process import RUN_SECONDS, check_limit

_BATCHES_AT_NORMS = 2  # of the data


def validate(
    reference: Model,
    candidate: Model,
    *,
    data: Any = None,
    labels: Any = None,
    contract: Literal["exact", "approximate"] | None = None,
    effort: Effort = "quick",
    simulate: str | None = None,
    calibration: Any = None,
    bisect: bool = False,
    certify: bool = False,
    reproducer: str | Path | None = None,
    reference_runtime: str | None = None,
    candidate_runtime: str | None = None,
    limit: float = RUN_SECONDS,
    command: str | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Compares ``candidate`` with ``reference`` under a contract, at the outputs and at every norm
    of the reference that is matched in the candidate (site_pairs.py).

    Args:
        reference: the model as it was.
        candidate: one with the same inputs and outputs, by name or by position; under the
            approximate contract they may be of another floating dtype.
        data: whatever ``load_data`` takes, or a ``Data``. The exact contract takes it in addition
            to the probes, as the kind ``data``; the approximate one in place of random inputs.
            Inputs that it lacks are drawn at random.
        labels: integers [N], for the approximate contract; by default the data's own.
        contract: 'exact' (exact.py): as close to ``reference`` in float64 as ``reference`` itself
            is, up to a factor of two. 'approximate' (approximate.py): how alike the outputs are.
            By default 'exact', and 'approximate' with ``simulate``.
        effort: of the exact contract. 'quick': as few rows of each kind of probe as show what it is
            for, and fewer of costly models. 'full': eight rows of every kind.
        simulate: 'float16' or 'bfloat16': run ``candidate`` with every value rounded to it, as a
            device without float32 accumulation does (graph/simulation.py); the report says where
            it is not finite first. 'int8', 'w4a8', and both with '-per-channel': with its weights
            and what products read rounded to integers, as a quantiser would make it
            (precision/quantised.py). ``reference`` runs as it is.
        calibration: for the ranges of integers, as ``data``; by default ``data`` itself.
        bisect: also look for the first place at which the models part.
        certify: of the exact contract: also prove that both are the same function in real
            arithmetic (``report.certificate``). Weights that a pass has rounded are others; a
            certificate of such a pass is had from ``swap`` and ``fold``.
        reproducer: an .npz for the inputs that show it, which ``data`` takes.
        reference_runtime: what its outputs come from: 'torch', 'onnxruntime' or 'openvino'. By
            default, and for all inside the models, torch for a torch graph and ONNX Runtime without
            its optimisations for ONNX.
        candidate_runtime: the same for ``candidate``.
        limit: seconds for one run in such a runtime, and for loading the model into it.
        command: what makes the report again, to stand in it.
        progress: ``progress(done, total, what)`` is called before each step.

    Returns:
        A report with ``passed``, ``findings``, and the figures of each output and norm.

    Raises:
        NormswapError: bad data or labels, models whose inputs or outputs do not match, a runtime
            that is missing or not for that model, a limit that is no time, an unknown contract or
            format, ``simulate`` with the exact contract, a bisection or a runtime for
            ``candidate``, and ``calibration`` without integers to simulate.

    Examples:
        >>> report = validate(load("vit.onnx"), load("fused.onnx"))
        >>> report.passed
        True
        >>> validate(model, swapped, data="images", contract="approximate").outputs[0].sqnr_db
        >>> validate(model, model, data="images", simulate="float16").outputs[0].sqnr_db
        >>> validate(model, swapped, data="test", simulate="int8", calibration="train").outputs
    """
    contract = contract or ("approximate" if simulate else "exact")
    if certify and contract != "exact":
        raise NormswapError("certify belongs to the exact contract")
    if contract not in ("exact", "approximate"):
        raise NormswapError(f"the contract '{contract}' is neither exact nor approximate")
    check_limit(limit)
    if effort not in ("quick", "full"):
        raise NormswapError(f"the effort '{effort}' is neither quick nor full")
    if simulate is not None:
        _check_simulated(contract, bisect, candidate_runtime)
    if calibration is not None and simulate not in INTEGER_FORMATS:
        raise NormswapError(
            "calibration data is for integers: give simulate='int8' or leave it out"
        )
    fitting = shared_inputs if contract == "exact" else shared_sizes
    shared = replace(reference, inputs=fitting(reference, candidate))
    matched_positions(reference, candidate)  # before any work, for what it raises
    if data is not None and not isinstance(data, Data):
        data = load_data(data, reference, progress=progress)
    with reference.at_fault(), candidate.at_fault():
        if contract == "exact":
            used = _exact_inputs(shared, data, labels, effort)
        else:
            used = _approximate_inputs(shared, data, labels)
        ours, theirs = (list(model.sites) for model in (reference, candidate))
        pairs, unmatched = _paired_norms(reference, candidate, ours, theirs)
        run = None
        if simulate is not None:
            ranges = used if calibration is None else _calibration(shared, calibration, progress)
            named = feeds_for(reference, candidate)
            run = simulated(candidate, simulate, [named(probe.feeds) for probe in ranges.probes])
        sites = SiteErrors(reference, candidate, pairs, None if run is None else run.slice)
        sides = (
            _Side(reference, reference_runtime, limit),
            _Side(candidate, candidate_runtime, limit, run),
        )
        report = _at_outputs(sides, contract, used, sites, progress)
        findings = list(used.findings)
        if run is not None:
            findings += [Finding(kind, told, fatal=False) for kind, told in run.findings()]
        else:
            findings += found_unchanged(reference, candidate)
        report = _with_findings(report, findings)
        if simulate in INTEGER_FORMATS:
            few = [probe.feeds for probe in used.probes[:_BATCHES_AT_NORMS]]
            report = replace(report, ranges=_ranges(reference, candidate, few))
        if report.answers is not None and data is not None:
            report = replace(report, answers=with_pictures(report.answers, reference, data))
        report = replace(report, unmatched=unmatched)
        if pairs:
            report = _with_norms(sites, used.probes, report, progress)
        if certify:
            if progress:
                progress(0, 1, "certifying")
            report = replace(report, certificate=certified(reference, candidate))
            if progress:
                progress(1, 1, "certifying")
        if bisect:
            if progress:
                progress(0, 1, "bisecting")
            found, feeds = bisected(reference, candidate, ours, pairs, used.probes, report)
            if feeds is not None and reproducer is not None:
                _save(feeds, Path(reproducer))
                found = replace(found, reproducer=str(reproducer))
            report = replace(report, bisection=found)
            if progress:
                progress(1, 1, "bisecting")
        return replace(
            report,
            reference=model_summary(reference, report.reference.runtime, ours),
            candidate=model_summary(candidate, report.candidate.runtime, theirs),
            provenance=provenance(command),
        )


@dataclass(frozen=True)
class _Inputs:
    """What two models are compared on: ``given`` names the inputs that labels belong to."""

    probes: list[Probe]
    findings: list[Finding]
    labels: Array | None = None
    given: Collection[str] | None = None


def _exact_inputs(shared: Model, data: Data | None, labels: Any, effort: Effort) -> _Inputs:
    if labels is not None:
        raise NormswapError("labels are for the approximate contract")
    probes = make_probes(shared, effort=effort)
    if data is None:
        return _Inputs(probes, [])
    batches, findings = batches_of(shared, data)
    return _Inputs([*probes, *(Probe("data", feeds) for feeds in batches)], findings)


def _approximate_inputs(shared: Model, data: Data | None, labels: Any) -> _Inputs:
    if data is None:
        if labels is not None:
            raise NormswapError("labels need the data that they belong to")
        drawn = [draw_feeds(shared, "normal", BATCH, [0, draw]) for draw in range(2)]
        note = "no data was given: the figures are those of random inputs"
        finding = Finding("data", note, fatal=False)
        return _Inputs([Probe("normal", feeds) for feeds in drawn], [finding], given=())
    counted = checked_labels(data.labels if labels is None else labels, data.count)
    batches, findings = batches_of(shared, data)
    if counted is not None:  # a remainder that fills no fixed batch has no outputs
        first = next(iter(data.feeds))
        counted = counted[: sum(len(feeds[first]) for feeds in batches)]
    given = data.feeds.keys() | masks_of(shared, data)
    return _Inputs([Probe("data", feeds) for feeds in batches], findings, counted, given)


def _calibration(shared: Model, data: Any, progress: Progress | None) -> _Inputs:
    if not isinstance(data, Data):
        data = load_data(data, shared, progress=progress)
    return _approximate_inputs(shared, Data(data.feeds, None), None)


@dataclass(frozen=True)
class _Side:
    """A model, and how it is run."""

    model: Model
    runtime: str | None
    limit: float
    simulated: SimulatedModel | QuantisedModel | None = None

    def opened(self, stack: contextlib.ExitStack) -> tuple[Run | None, str]:
        """As ``chosen_runtimes.opened`` has it."""
        simulated = self.simulated
        if simulated is None:
            return opened(self.model, self.runtime, self.limit, stack)

        def call(feeds: Mapping[str, Array]) -> list[Array]:
            with reported_failures():
                return simulated.run(feeds)

        return call, simulated.says


def _check_simulated(contract: str, bisect: bool, runtime: str | None) -> None:
    """Raises NormswapError for what does not go with a simulation."""
    if contract == "exact":
        raise NormswapError("a simulation is another function: simulate needs contract approximate")
    if bisect:
        raise NormswapError("a simulation itself says where it begins: leave bisect out")
    if runtime is not None:
        raise NormswapError(f"a simulation runs in no runtime: leave {runtime} or simulate out")


def _ranges(
    reference: Model, candidate: Model, batches: Sequence[Mapping[str, Array]]
) -> list[SiteRanges]:
    named = feeds_for(reference, candidate)
    ours = measured(reference, batches).norms
    theirs = {
        norm.site.name: norm for norm in measured(candidate, [named(f) for f in batches]).norms
    }
    rows = []
    for norm in ours:
        site, other = norm.site, theirs.get(norm.site.name)
        rows.append(
            SiteRanges(
                site.name,
                site.role,
                site.tower,
                (norm.reads.ratio, None if other is None else other.reads.ratio),
                (norm.reads.kurtosis, None if other is None else other.reads.kurtosis),
                (norm.gives.ratio, None if other is None else other.gives.ratio),
                (norm.gives.kurtosis, None if other is None else other.gives.kurtosis),
            )
        )
    return rows


def _at_outputs(
    sides: tuple[_Side, _Side],
    contract: str,
    used: _Inputs,
    sites: SiteErrors,
    progress: Progress | None,
) -> ValidationReport:
    """The contract at the outputs, and, where it is exact, the errors at norms, of the same runs.
    What runs the models holds their weights, and ends with this."""
    reference, candidate = (side.model for side in sides)
    with contextlib.ExitStack() as stack:
        runs = sides[0].opened(stack), sides[1].opened(stack)
        calls = runs[0][0], runs[1][0]
        if contract == "exact":
            report = exact_contract(reference, candidate, used.probes, progress, calls, sites)
        else:
            batches = _reported([probe.feeds for probe in used.probes], progress)
            report = approximate_contract(
                reference, candidate, batches, used.labels, used.given, calls
            )
    return replace(
        report,
        reference=replace(report.reference, runtime=runs[0][1]),
        candidate=replace(report.candidate, runtime=runs[1][1]),
    )


def _paired_norms(
    reference: Model, candidate: Model, ours: Sequence[Site], theirs: Sequence[Site]
) -> tuple[list[SitePair], list[tuple[str, str]]]:
    ends = [candidate.graph.outputs[place] for place in matched_positions(reference, candidate)]
    return pair_sites(
        Side(reference.graph, ours, reference.graph.outputs), Side(candidate.graph, theirs, ends)
    )


def _with_norms(
    sites: SiteErrors, probes: Sequence[Probe], report: ValidationReport, progress: Progress | None
) -> ValidationReport:
    """The report with what holds at norms: under the exact contract also on inputs of their own,
    else on the first batches."""
    if report.contract == "exact":
        sites.add_norms_alone(progress)
    else:
        chosen = probes[:_BATCHES_AT_NORMS]
        for done, probe in enumerate(chosen):
            if progress:
                progress(done, len(chosen), f"norms: {probe.name}")
            sites.add(probe)
        if progress:
            progress(len(chosen), len(chosen), "done")
    compared, rewritten = comparable(sites.results(), report.passed)
    unmatched = [*report.unmatched, *rewritten]
    return replace(_with_findings(report, judged(compared)), sites=compared, unmatched=unmatched)


def _with_findings(report: ValidationReport, more: Sequence[Finding]) -> ValidationReport:
    findings = [*report.findings, *more]
    passed = not any(finding.fatal for finding in findings)
    return replace(report, passed=passed, findings=findings)


def _reported(
    batches: Sequence[Mapping[str, Array]], progress: Progress | None
) -> Iterator[Mapping[str, Array]]:
    """The batches, announced to ``progress``."""
    for done, feeds in enumerate(batches):
        if progress:
            progress(done, len(batches), "comparing")
        yield feeds
    if progress:
        progress(len(batches), len(batches), "done")


def _save(feeds: Mapping[str, Array], path: Path) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **feeds)
