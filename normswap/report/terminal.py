"""Results as rich renderables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normswap.norms.site import Rejection, Site
from normswap.passes.base import PassResult
from normswap.report.inspection import InspectedSite, Inspection
from normswap.report.rewriting import Rewriting

_NAME_WIDTH = 20  # at least
_PLACES = 3  # of a reason for which candidates were rejected
_GOOD, _BAD, _DIM = "green", "bold red", "dim"


def inspection_view(found: Inspection) -> RenderableType:
    """The table of sites, what they cost in all, and what was rejected."""
    count = len(found.sites)
    noun = "norm" if count == 1 else "norms"
    title = Text(f"{found.model}: {count} {noun} ({found.kind})", "bold")
    parts: list[RenderableType] = [title]
    if found.sites:
        parts += [_sites_table(found.sites), _costs(found)]
    parts += _rejections(found.rejected)
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


def _sites_table(sites: Sequence[InspectedSite]) -> RenderableType:
    """One row for each; what all of them share is said above, for it leaves room for the names."""
    columns = {
        "site": [found.site.name for found in sites],
        "kind": [found.site.kind for found in sites],
        "role": [found.site.role for found in sites],
        "tower": [found.site.tower for found in sites],
        "shape": [shape_text(found.input_shape, found.site.axes) for found in sites],
        "spelling": [found.site.spelling for found in sites],
        "eps": [f"{found.site.epsilon:.6g}" for found in sites],
        "statistics": [_count_text(found.statistics) for found in sites],
        "folded BN": [f"{found.statistics_folded_batch_norm:,}" for found in sites],
    }
    shared = []
    for name in ("kind", "tower", "spelling", "eps"):
        if len(sites) > 1 and len(set(columns[name])) == 1:
            value = columns.pop(name)[0]
            shared += [f"{name} {value}"] if value else []
    made = table(*columns, numeric=("eps", "statistics", "folded BN"))
    for row in zip(*columns.values(), strict=True):
        made.add_row(*map(Text, row))
    return Group(Text(f"all of them: {', '.join(shared)}", _DIM), made) if shared else made


def _costs(found: Inspection) -> Text:
    unknown = any(site.statistics is None for site in found.sites)
    total = f"{'at least ' if unknown else ''}{found.statistics:,} statistics"
    sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in found.examples.items())
    return Text(
        f"{total} are computed for {sizes}; folded BatchNorm computes "
        f"{found.statistics_folded_batch_norm}\n"
        "[brackets] are around the sizes that are normalised, or a BatchNorm's channels",
        _DIM,
    )


def _count_text(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _rejections(rejected: Sequence[Rejection]) -> list[RenderableType]:
    """A line for each reason, and one of the first places."""
    places: dict[str, list[str]] = {}
    for rejection in rejected:
        places.setdefault(rejection.reason, []).append(rejection.where)
    lines = []
    for reason, where in places.items():
        count = f"{len(where)} times " if len(where) > 1 else ""
        more = f", and {len(where) - _PLACES} more (--json lists all)"
        told = ", ".join(where[:_PLACES]) + (more if len(where) > _PLACES else "")
        lines.append(Text(f"no norm: {count}{reason}\n         in {told}", "yellow"))
    return list(lines)


def _outcomes_table(result: PassResult) -> Table:
    made = table("site", "role", "tower", "outcome")
    made.columns[-1].no_wrap = False
    outcomes: list[tuple[Site, Text]] = [(site, Text("done", _GOOD)) for site in result.done]
    outcomes += [(site, Text(f"skipped: {why}", "yellow")) for site, why in result.skipped]
    outcomes += [(site, Text(why, "yellow")) for site, why in result.kept]
    for site, outcome in outcomes:
        made.add_row(Text(site.name), site.role, site.tower, outcome)
    return made


def _count(result: PassResult) -> str:
    if not result.done and not result.skipped and not result.kept:
        return "nothing to do"
    kept = f", {len(result.kept)} kept" if result.kept else ""
    return f"{len(result.done)} done, {len(result.skipped)} skipped{kept}"
