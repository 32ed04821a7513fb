"""The ranges of a model's channels for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType

from normswap.precision.ranges import ChannelRanges, Ranges
from normswap.report.line import Line
from normswap.report.terminal import table

_UNEVEN = 8.0
"""The median channel has an eighth of the range: 32 of 256 steps."""


def ranges_view(found: Ranges) -> RenderableType:
    """A row for each norm: the largest over the median channel, and the kurtosis, of what it reads
    and gives."""
    title = f"{found.model}: ranges of channels on {found.samples} samples"
    columns = ["norm", "reads: largest", "over median", "kurtosis"]
    columns += ["gives: largest", "over median", "kurtosis"]
    made = table(*columns, numeric=columns[1:])
    for norm in found.norms:
        made.add_row(Line(norm.site.name), *_cells(norm.reads), *_cells(norm.gives))
    return Group(Line(title, "bold"), made)


def _cells(found: ChannelRanges) -> list[Line]:
    return [
        Line(f"{found.largest:.3g}"),
        Line(f"{found.ratio:.1f}", "bold red" if found.ratio > _UNEVEN else ""),
        Line(f"{found.kurtosis:.1f}"),
    ]
