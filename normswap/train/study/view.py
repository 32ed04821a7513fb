"""A comparison as rich renderables."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from normswap.report.terminal import table
from normswap.train.study.findings import AGREES, DISAGREES
from normswap.train.study.groups import at_best_rate, crashes, difference, highest_stable
from normswap.train.study.results import Comparison
from normswap.train.study.variants import LN, VARIANTS

_COLORS = {AGREES: "green", DISAGREES: "red"}


def comparison_view(comparison: Comparison, folder: Path) -> RenderableType:
    """The table, the findings, and where the rest is."""
    columns = ("best rate", "accuracy", "against LN", "crashed", "stable up to")
    made = table("norm", *columns, numeric=columns)
    for variant in comparison.options.variants:
        best = at_best_rate(comparison.runs, variant)
        crashed, runs = crashes(comparison.runs, variant)
        stable = highest_stable(comparison.runs, variant)
        gap = difference(comparison.runs, variant, LN).mean
        made.add_row(
            Text(VARIANTS[variant]),
            f"{best.rate:g}",
            f"{best.mean:.1f} ± {best.deviation:.1f} %",
            "" if variant == LN else f"{gap:+.1f}",
            f"{crashed} of {runs}",
            "none" if stable is None else f"{stable:g}",
        )
    parts: list[RenderableType] = [made]
    for finding in comparison.findings:
        verdict = Text(f"{finding.verdict}: ", _COLORS.get(finding.verdict, "yellow"))
        parts.append(Text(f"{finding.claim} ", "bold") + verdict + Text(finding.text))
    return Lines(*parts, Text(f"figures and all runs: {folder}/README.md", "dim"))
