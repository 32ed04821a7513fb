"""Which outputs say most about how close another function is."""

from __future__ import annotations

from collections.abc import Sequence

from normswap.parity.report import ApproximateOutput, ValidationReport


def approximate_outputs(report: ValidationReport) -> list[ApproximateOutput]:
    return [output for output in report.outputs if isinstance(output, ApproximateOutput)]


def furthest_output(outputs: Sequence[ApproximateOutput]) -> ApproximateOutput | None:
    """The one of the lowest SQNR; None where none has one: all are equal, or not finite."""
    known = [output for output in outputs if output.sqnr_db is not None]
    return min(known, key=lambda output: output.sqnr_db or 0.0, default=None)


def class_output(outputs: Sequence[ApproximateOutput]) -> ApproximateOutput | None:
    """The one that was scored, else the first whose rows are classes: an embedding has a largest
    element too, but it means nothing."""
    scored = [output for output in outputs if output.accuracy_reference is not None]
    classes = [output for output in outputs if output.kl_mean is not None]
    return next(iter(scored + classes), None)
