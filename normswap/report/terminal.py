"""Results as rich renderables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normswap.locate.site import Site
from normswap.passes.base import PassResult
from normswap.report.inspection import InspectedSite, Inspection
from normswap.report.rewriting import Rewriting

_NAME_WIDTH = 20  # at least
_GOOD, _BAD, _DIM = "green", "bold red", "dim"


def inspection_view(found: Inspection) -> RenderableType:
    """The table of sites, and what was rejected."""
    count = len(found.sites)
    noun = "norm" if count == 1 else "norms"
    title = Text(f"{found.model}: {count} {noun} ({found.kind})", "bold")
    parts: list[RenderableType] = [title]
    if found.sites:
        parts.append(_sites_table(found.sites))
        sizes = ", ".join(f"{name} {shape_text(s)}" for name, s in found.examples.items())
        parts.append(
            Text(
                f"{found.statistics:,} statistics are computed for {sizes}; [brackets] are around "
                "the sizes that are normalised, or a BatchNorm's channels",
                _DIM,
            )
        )
    for rejection in found.rejected:
        parts.append(Text(f"no norm: {rejection.where}: {rejection.reason}", "yellow"))
    return Group(*parts)


def rewriting_view(report: Rewriting) -> RenderableType:
    """What each pass did and skipped, its notes, and the file that was written."""
    parts: list[RenderableType] = []
    for name, result in report.steps:
        parts += [Text(f"{name}: {_count(result)}", "bold"), _outcomes_table(result)]
        parts += [Text(f"note: {note}") for note in result.notes]
    for name, reason in report.unmet:
        parts.append(Text(f"asked for and not done: {name}: {reason}", _BAD))
    if report.output is not None:
        parts.append(written_view(report.output))
    return Group(*parts)


def written_view(path: Path) -> RenderableType:
    """The file that was written and its size."""
    return Text(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def shape_text(shape: Sequence[int] | None, marked: Sequence[int] = ()) -> str:
    """A shape like 2x17x[48], the axes ``marked`` in brackets."""
    if shape is None:
        return "?"
    return "x".join(f"[{s}]" if axis in marked else str(s) for axis, s in enumerate(shape))


def table(*columns: str, numeric: Sequence[str] = ()) -> Table:
    """An empty table. Only the first column, of names, is folded where space is short."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if column in numeric else "left",
            no_wrap=index > 0,
            overflow="fold",
            min_width=None if index else _NAME_WIDTH,
        )
    return made


def _sites_table(sites: Sequence[InspectedSite]) -> Table:
    made = table(
        "site",
        "kind",
        "role",
        "tower",
        "shape",
        "spelling",
        "eps",
        "statistics",
        numeric=("eps", "statistics"),
    )
    for found in sites:
        site = found.site
        made.add_row(
            Text(site.name),
            site.kind,
            site.role,
            site.tower,
            Text(shape_text(found.input_shape, site.axes)),
            site.spelling,
            f"{site.epsilon:.6g}",
            "?" if found.statistics is None else f"{found.statistics:,}",
        )
    return made


def _outcomes_table(result: PassResult) -> Table:
    made = table("site", "role", "tower", "outcome")
    made.columns[-1].no_wrap = False
    outcomes: list[tuple[Site, Text]] = [(site, Text("done", _GOOD)) for site in result.done]
    outcomes += [(site, Text(f"skipped: {why}", "yellow")) for site, why in result.skipped]
    for site, outcome in outcomes:
        made.add_row(Text(site.name), site.role, site.tower, outcome)
    return made


def _count(result: PassResult) -> str:
    if not result.done and not result.skipped:
        return "nothing to do"
    return f"{len(result.done)} done, {len(result.skipped)} skipped"
