"""A distillation as rich renderables: what came back, output by output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from normswap.parity.report import ApproximateOutput, ValidationReport
from normswap.report.terminal import table, written_view

if TYPE_CHECKING:
    from normswap.train.distill import DistillResult

_FIGURES = {
    "SQNR dB": ("sqnr_db", "{:.1f}"),
    "cosine": ("cosine_mean", "{:.4f}"),
    "top-1": ("top1_agreement", "{:.1%}"),
    "accuracy": ("accuracy_candidate", "{:.1%}"),
}


def distillation_view(result: DistillResult, output: Path) -> RenderableType:
    """The loss, a row for each output before and after, notes, and the file that was written."""
    first, last = result.losses[0], result.losses[-1]
    again = f", resumed at step {result.resumed_at}" if result.resumed_at else ""
    title = Text(
        f"{result.trained} BatchNorms trained for {len(result.losses)} steps{again}: loss "
        f"{first:.4g} to {last:.4g}",
        "bold",
    )
    made = table("output", "", *_FIGURES, numeric=tuple(_FIGURES))
    rows = {"before": result.before, "after": result.after}
    for name in dict.fromkeys(o.name for report in rows.values() for o in report.outputs):
        for when, report in rows.items():
            found = _of(report, name)
            made.add_row(Text(name if when == "before" else ""), when, *_cells(found))
    told = Text(
        f"against the original on {result.samples} samples of the data; {result.statistics} "
        f"statistics",
        "dim",
    )
    notes = [Text(f"note: {note}") for note in result.notes]
    return Group(title, made, told, *notes, written_view(output))


def write_report(result: DistillResult, path: Path) -> None:
    """The trained student against the teacher as an HTML page, with the loss of each step."""
    from normswap.report.html.page import write_html
    from normswap.report.html.training import Training

    facts = {name.replace("_", " "): str(value) for name, value in vars(result.options).items()}
    facts |= {"BatchNorms": str(result.trained), "statistics": result.statistics}
    write_html(result.after, path, training=Training(result.losses, result.before, facts))


def _of(report: ValidationReport, name: str) -> ApproximateOutput | None:
    found = (o for o in report.outputs if isinstance(o, ApproximateOutput) and o.name == name)
    return next(found, None)


def _cells(output: ApproximateOutput | None) -> list[str]:
    values = [getattr(output, field, None) for field, _ in _FIGURES.values()]
    forms = [form for _, form in _FIGURES.values()]
    return [f.format(v) if v is not None else "" for f, v in zip(forms, values, strict=True)]
