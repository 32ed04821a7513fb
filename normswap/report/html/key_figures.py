"""The few figures that stand at the top."""

from __future__ import annotations

from dataclasses import dataclass

from normswap.parity.report import ExactOutput, ValidationReport
from normswap.report.html.closeness import approximate_outputs, class_output, furthest_output
from normswap.report.html.compared_times import compared_times
from normswap.report.html.excess import largest_excess
from normswap.report.html.formats import (
    TO,
    change,
    counted,
    file_size,
    kinds_present,
    number,
    percent,
    times,
)
from normswap.timing.bench_report import BenchReport


@dataclass(frozen=True)
class KeyFigure:
    value: str
    name: str
    detail: str = ""


def key_figures(report: ValidationReport, bench: BenchReport | None) -> list[KeyFigure]:
    """Those that are known."""
    found = _exact(report) if report.contract == "exact" else _approximate(report)
    ours, theirs = report.reference, report.candidate
    if ours.norms or theirs.norms:
        detail = f"{kinds_present(ours)} {TO} {kinds_present(theirs)}"
        found.append(KeyFigure(f"{len(ours.norms)} {TO} {len(theirs.norms)}", "norms", detail))
    found += _costs(report, bench)
    if ours.size_bytes is not None and theirs.size_bytes is not None:
        sizes = f"{file_size(ours.size_bytes)} {TO} {file_size(theirs.size_bytes)}"
        found.append(KeyFigure(sizes, "size of the files"))
    return found


def _exact(report: ValidationReport) -> list[KeyFigure]:
    worst = largest_excess(report)
    outputs = [output for output in report.outputs if isinstance(output, ExactOutput)]
    probes = {errors.probe for output in outputs for errors in output.probes}
    found = []
    if worst is not None:
        where = f"{worst.output}, {worst.probe}; up to 1 is rounding"
        found.append(KeyFigure(times(worst.times), "largest error / allowed", where))
    detail = f"on {counted(len(probes), 'probe')}" if probes else ""
    found.append(KeyFigure(str(len(outputs)), "outputs compared", detail))
    judged = [site for site in report.sites if site.passed is not None]
    if judged:
        passed = sum(bool(site.passed) for site in judged)
        found.append(KeyFigure(f"{passed} of {len(judged)}", "norms within what is allowed"))
    return found


def _approximate(report: ValidationReport) -> list[KeyFigure]:
    outputs = approximate_outputs(report)
    found = []
    worst, classes = furthest_output(outputs), class_output(outputs)
    if worst is not None:
        cosines = (worst.cosine_mean, worst.cosine_worst)
        detail = "cosine {}, worst {}".format(*(number(value, ".4f") for value in cosines))
        lowest = f"lowest SQNR, at {worst.name}"
        found.append(KeyFigure(f"{number(worst.sqnr_db, '.1f')} dB", lowest, detail))
    if classes is not None and classes.accuracy_reference is not None:
        shares = change(classes.accuracy_reference, classes.accuracy_candidate)
        found.append(KeyFigure(shares, "accuracy", counted(classes.rows, "sample")))
    if classes is not None and classes.top1_agreement is not None:
        agreement = percent(classes.top1_agreement)
        found.append(KeyFigure(agreement, "same first class", classes.name))
    pair = report.retrieval
    if pair is not None and pair.recall_at_1_reference and pair.recall_at_1_candidate:
        shares = change(pair.recall_at_1_reference[0], pair.recall_at_1_candidate[0])
        found.append(KeyFigure(shares, "R@1, image to text", f"{pair.pairs} pairs"))
    return found


def _costs(report: ValidationReport, bench: BenchReport | None) -> list[KeyFigure]:
    return [
        KeyFigure(
            f"{found.ratio.median:.2f}",
            f"of the time in {found.runtime}",
            f"{found.ratio.low:.2f} to {found.ratio.high:.2f}: {found.ratio.verdict}",
        )
        for found in compared_times(report, bench)
    ]
