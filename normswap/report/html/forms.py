"""The tables of what fitted swaps put in the place of each norm, and of what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normswap.model import Step
from normswap.parity.report import ValidationReport
from normswap.report.html.parts import Table, table_of


def form_tables(report: ValidationReport) -> list[Table]:
    """One for each swap of the candidate's history that was fitted to data, the first one first."""
    return [_table(step) for step in report.candidate.history if step.fits]


def fitted_in_words(steps: Sequence[Step]) -> list[str]:
    """What the columns of the tables mean; nothing where there are none."""
    if not any(step.fits for step in steps):
        return []
    return [
        "The error of a form is the share of the variance of the norm's output that it left on "
        "samples held out from the fit; multiply-adds are for each token, once all that can be "
        "folded is."
    ]


def _table(step: Step) -> Table:
    rows = [
        {
            "norm": fit.site,
            "form": fit.form,
            "error": _percent(fit.held_out_error),
            "multiply-adds": "-" if fit.multiply_adds is None else f"{fit.multiply_adds:,}",
        }
        for fit in step.fits
    ]
    caption = f"What {step.name} put in the place of each norm"
    return table_of(caption, rows, numeric=["error", "multiply-adds"], names=["norm"])


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "not finite"
    return f"{100 * share:.2g} %"
