"""Which of a benchmark's measurements are of the two models of a validation."""

from __future__ import annotations

from dataclasses import dataclass

from normswap.parity.report import ModelSummary, ValidationReport
from normswap.timing.bench_report import BenchReport, Measurement, Ratio


@dataclass(frozen=True)
class ComparedTimes:
    """``ratio``: of the candidate's time to the reference's in ``runtime``."""

    runtime: str
    ratio: Ratio


def compared_times(report: ValidationReport, bench: BenchReport | None) -> list[ComparedTimes]:
    """One for each runtime that ran both, the reference first."""
    measured = [result for result in bench.results if result.milliseconds] if bench else []
    found = []
    for runtime in dict.fromkeys(result.runtime for result in measured):
        first, *others = (result for result in measured if result.runtime == runtime)
        if _is(first, report.reference):
            for other in others:
                ratio = other.ratio_in_runtime or other.ratio
                if ratio is not None and _is(other, report.candidate):
                    found.append(ComparedTimes(runtime, ratio))
    return found


def _is(measured: Measurement, model: ModelSummary) -> bool:
    if measured.path is not None and model.path is not None:
        return measured.path == model.path
    return measured.model == model.name
