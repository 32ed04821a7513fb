"""Errors under the exact contract as multiples of what is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from normswap.parity.report import ExactOutput, ProbeErrors, ValidationReport


@dataclass(frozen=True)
class Excess:
    times: float
    output: str
    probe: str


def excess(errors: ProbeErrors) -> float:
    """The larger of the largest and the root-mean-square error, over its bound; passed up to 1."""
    pairs = [
        (errors.max_candidate, errors.max_bound),
        (errors.rms_candidate, errors.rms_bound),
    ]
    return max(_over(error, bound) for error, bound in pairs)


def largest_excess(report: ValidationReport) -> Excess | None:
    """None where no output was compared in numbers."""
    found = [
        Excess(excess(errors), output.name, errors.probe)
        for output in report.outputs
        if isinstance(output, ExactOutput)
        for errors in output.probes
    ]
    return max(found, key=lambda item: item.times, default=None)


def _over(error: float, bound: float) -> float:
    if math.isnan(error) or math.isnan(bound):
        return math.inf
    if bound == 0:
        return math.inf if error > 0 else 0.0
    return error / bound
