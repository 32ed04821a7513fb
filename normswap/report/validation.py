"""A validation as rich renderables: the verdict, a table, the findings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normswap.report.terminal import table
from normswap.validate.report import (
    ApproximateOutput,
    ExactOutput,
    Finding,
    ValidationReport,
)

# Figures of another function are not passed or failed: a reader decides what is close enough.
_VERDICTS = {"exact": "passed", "approximate": "measured"}


def validation_view(report: ValidationReport) -> RenderableType:
    """The verdict first, then the figures, then what a reader must know."""
    fatal = [finding for finding in report.findings if finding.fatal]
    names = f"{report.candidate.name} against {report.reference.name}"
    verdict = _VERDICTS[report.contract] if report.passed else "FAILED"
    parts: list[RenderableType] = [
        Text(
            f"{report.contract} contract {verdict}: {names}",
            "bold green" if report.passed else "bold red",
        )
    ]
    exact = [output for output in report.outputs if isinstance(output, ExactOutput)]
    approximate = [output for output in report.outputs if isinstance(output, ApproximateOutput)]
    if any(output.probes for output in exact):
        parts.append(_exact_table(exact))
    if approximate:
        parts.append(_approximate_table(approximate))
    parts += [_finding(finding) for finding in fatal]
    parts += [_finding(finding) for finding in report.findings if not finding.fatal]
    return Group(*parts)


def _exact_table(outputs: Sequence[ExactOutput]) -> Table:
    numeric = ("error", "original's", "allowed")
    made = table("output", "probe", *numeric, "", numeric=numeric)
    for output in outputs:
        for errors in output.probes:
            made.add_row(
                Text(output.name),
                errors.probe,
                _number(errors.max_candidate),
                _number(errors.max_original),
                _number(errors.max_bound),
                Text("ok", "green") if errors.passed else Text("FAILED", "bold red"),
            )
    return made


def _approximate_table(outputs: Sequence[ApproximateOutput]) -> Table:
    numeric = ("rows", "SQNR dB", "cosine", "worst", "max error", "top-1", "accuracy")
    made = table("output", *numeric, numeric=numeric)
    for output in outputs:
        made.add_row(
            Text(output.name),
            str(output.rows),
            _number(output.sqnr_db, ".1f") if output.max_abs_error != 0 else "equal",
            _number(output.cosine_mean, ".4f"),
            _number(output.cosine_worst, ".4f"),
            _number(output.max_abs_error),
            _percent(output.top1_agreement),
            _accuracy(output),
        )
    return made


def _accuracy(output: ApproximateOutput) -> str:
    if output.accuracy_reference is None:
        return "-"
    return f"{_percent(output.accuracy_reference)} -> {_percent(output.accuracy_candidate)}"


def _finding(finding: Finding) -> Text:
    where = " at ".join(part for part in (finding.probe, finding.output) if part)
    where = f" ({where})" if where else ""
    style = "red" if finding.fatal else "yellow"
    return Text(f"{finding.kind}: {finding.message}{where}", style)


def _number(value: float | None, spec: str = ".2e") -> str:
    return "-" if value is None else format(value, spec)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
