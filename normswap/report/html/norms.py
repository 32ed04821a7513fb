"""The sections on the norms of both models: before and after, and what was skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup

from normswap.model import Step
from normswap.parity.report import ModelSummary, Norm, SiteComparison, ValidationReport
from normswap.report.html.forms import fitted_in_words, form_tables
from normswap.report.html.parts import (
    Note,
    Picture,
    Section,
    Table,
    counted,
    gathered,
    kind_name,
    kind_style,
    kinds_present,
    role_name,
    shortened,
    table_of,
    tower_name,
)
from normswap.report.html.svg import label, line, picture, share, tag
from normswap.report.outline.grouping import runs
from normswap.report.outline.items import pattern

_LARGEST_BLOCK = 16
_MOST_LINES = 40  # of a picture
_HEAD, _NAME, _BOX, _GAP, _PAD = 26, 16, 38, 10, 8  # pixels along y
_LEFT, _RIGHT, _COLUMN = 0.02, 0.54, 0.44  # of the width
_LONGEST = 42  # letters of a name that fit a phone
_STATES = {  # in the table, and below the box of the candidate
    "kept": ("kept", "kept"),
    "swapped": ("swapped for another kind", "in its place"),
    "gone": ("gone", "no norm is left here"),
    "new": ("new", "new"),
    "unmatched": ("not matched", "see below, skipped"),
}


@dataclass(frozen=True)
class NormRow:
    """A norm of the reference and what is in its place in the candidate.

    ``state``: 'kept', 'swapped' (another kind), 'gone', 'new' (``before`` is None) or 'unmatched'
    (it is not known what is in its place).
    """

    before: Norm | None
    after: Norm | None
    after_kind: str | None
    state: str

    @property
    def norm(self) -> Norm:
        norm = self.before or self.after
        assert norm is not None
        return norm


Block: TypeAlias = list[list[NormRow]]
"""Copies of a block: rows that are alike but for their names."""


def norms_section(report: ValidationReport) -> Section:
    towers = norm_rows(report)
    if not towers:
        text = "No norm was located in either model, so there is nothing to draw."
        return Section("norms", "Norms before and after", [text])
    before, after = kinds_present(report.reference), kinds_present(report.candidate)
    text = f"The reference has {before}; the candidate has {after}. Depth goes down the page."
    pictures = [_picture(tower, rows) for tower, rows in towers.items()]
    words = [text, *fitted_in_words(report.candidate.history)]
    tables = form_tables(report)
    return Section("norms", "Norms before and after", words, pictures=pictures, tables=tables)


def _picture(tower: str, rows: Sequence[NormRow]) -> Picture:
    title = f"{tower_name(tower)}: norms before and after"
    states = Counter(row.state for row in rows)
    words = ", ".join(f"{states[state]} {w}" for state, (w, _) in _STATES.items() if states[state])
    drawn, ordered = blocks(rows)
    drawing = _drawing(title, f"{counted(len(rows), 'norm')}: {words}.", drawn)
    caption = f"{tower_name(tower)}: {words}"
    if not ordered:
        caption += "; too many to draw in depth, those of the same kinds are one"
    cells = [
        {
            "norm": row.norm.name,
            "role": role_name(row.norm.role),
            "width": str(row.norm.width),
            "before": kind_name(row.before.kind if row.before else None),
            "after": kind_name(row.after_kind),
            "": _STATES[row.state][0],
        }
        for row in rows
    ]
    data = table_of("Every norm", cells, numeric=["width"], names=["norm"])
    return Picture(caption, drawing, data)


# -- rows ----------------------------------------------------------------------------------------


def norm_rows(report: ValidationReport) -> dict[str, list[NormRow]]:
    """The rows of each tower, in the order of execution."""
    ours, theirs = report.reference.norms, report.candidate.norms
    sites = {site.name: site for site in report.sites}
    left = {norm.tower for norm in theirs}  # where no norm is left, none needs a match
    gone = {norm.name for norm in ours if norm.tower not in left}
    unmatched = {name for name, _ in report.unmatched} - gone
    return {
        tower: _side_by_side(
            [norm for norm in ours if norm.tower == tower],
            [norm for norm in theirs if norm.tower == tower],
            sites,
            unmatched,
        )
        for tower in dict.fromkeys(norm.tower for norm in [*ours, *theirs])
    }


def blocks(rows: Sequence[NormRow]) -> tuple[list[Block], bool]:
    """The rows with runs of blocks that are alike as one block, and whether they are in order.

    Where that leaves too many, roles and widths do not count; where that still does, all rows of
    the same kinds are one, wherever they are.
    """
    for signature in (_signature, _kinds):
        signatures = [signature(row) for row in rows]
        found = [
            [list(rows[start + copy * size :][:size]) for copy in range(count)]
            for start, size, count in runs(signatures, _LARGEST_BLOCK)
        ]
        if sum(len(block[0]) for block in found) <= _MOST_LINES:
            return found, True
    alike: dict[tuple[object, ...], Block] = {}
    for row in rows:
        alike.setdefault(_kinds(row), []).append([row])
    return list(alike.values()), False


def _side_by_side(
    ours: Sequence[Norm],
    theirs: Sequence[Norm],
    sites: dict[str, SiteComparison],
    unmatched: set[str],
) -> list[NormRow]:
    places = {norm.name: index for index, norm in enumerate(theirs)}
    named = {norm.name for norm in ours if norm.name in places}
    rows: list[NormRow] = []
    shown = 0  # how many of theirs have a row
    for norm in ours:
        site = sites.get(norm.name)
        place = places.get(norm.name)
        lost = norm.name in unmatched
        if place is None and not lost and (site is None or site.candidate_kind):
            place = _renamed(norm, site, theirs, shown, named)
        if place is None or place < shown:
            kind = site.candidate_kind if site else None
            rows.append(NormRow(norm, None, kind, _state(norm, kind, lost)))
            continue
        rows += [NormRow(None, new, new.kind, "new") for new in theirs[shown:place]]
        kind = theirs[place].kind
        rows.append(NormRow(norm, theirs[place], kind, _state(norm, kind, False)))
        shown = place + 1
    return rows + [NormRow(None, new, new.kind, "new") for new in theirs[shown:]]


def _renamed(
    norm: Norm, site: SiteComparison | None, theirs: Sequence[Norm], shown: int, named: set[str]
) -> int | None:
    """The next norm of the same role, and of the kind that was found there, before one whose name
    is known in both models."""
    for index, other in enumerate(theirs[shown:], shown):
        if other.name in named:
            return None
        if other.role == norm.role and (site is None or other.kind == site.candidate_kind):
            return index
    return None


def _state(norm: Norm, kind: str | None, unmatched: bool) -> str:
    if kind is None:
        return "unmatched" if unmatched else "gone"
    return "kept" if kind == norm.kind else "swapped"


def _signature(row: NormRow) -> tuple[object, ...]:
    return (*_kinds(row), row.norm.role, row.norm.width)


def _kinds(row: NormRow) -> tuple[object, ...]:
    return (row.before.kind if row.before else None, row.after_kind, row.state)


# -- drawing -------------------------------------------------------------------------------------


def _drawing(title: str, description: str, drawn: Sequence[Block]) -> Markup:
    """A column for each of the two models, a line for each norm, data flowing down."""
    parts: list[Markup] = []
    y = float(_HEAD)
    for copies in drawn:
        repeated = len(copies) > 1
        top = y
        y += _PAD if repeated else 0
        for same in zip(*copies, strict=True):
            parts.append(_line(same, y))
            y += _NAME + _BOX + _GAP
        if repeated:
            height = y - top - _GAP + _PAD
            frame = tag("rect", x=0, y=top, width="100%", height=height, rx=8, class_="repeat")
            count = f"\N{MULTIPLICATION SIGN} {len(copies)}"
            parts.insert(0, frame + label(count, -8, top + height / 2 + 5, "count"))
            y += _PAD
    centres = {_LEFT + _COLUMN / 2: "reference", _RIGHT + _COLUMN / 2: "candidate"}
    streams = [line(share(x), share(x), _HEAD - 6, y, "stream") for x in centres]
    heads = [_centred(x, 14, words, "head") for x, words in centres.items()]
    return picture(title, description, y, "towers", *streams, *heads, *parts)


def _line(same: Sequence[NormRow], y: float) -> Markup:
    """The same row of every copy of a block."""
    row = same[0]
    names = [copy.norm.name for copy in same]
    roles = {copy.norm.role for copy in same}
    role = role_name(row.norm.role) if len(roles) == 1 else "several roles"
    name = shortened(pattern(names), _LONGEST)
    hover = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    shown = tag("text", tag("title", hover), name, x=share(_LEFT), y=y + _NAME - 5, class_="name")
    top = y + _NAME
    left = Markup("")
    if row.before is not None:
        left = _box(_LEFT, top, kind_style(row.before.kind), kind_name(row.before.kind), role)
    below = _STATES[row.state][1]
    if row.after_kind is not None:
        below = f"new, {role}" if row.before is None else below
        right = _box(_RIGHT, top, kind_style(row.after_kind), kind_name(row.after_kind), below)
    else:
        right = _box(_RIGHT, top, row.state, _STATES[row.state][0], below)
    arrow = "\N{RIGHTWARDS ARROW}" if row.before else "+"
    return shown + left + _centred(0.5, top + _BOX / 2 + 5, arrow, "arrow") + right


def _box(x: float, y: float, style: str, head: str, below: str) -> Markup:
    box = tag(
        "rect", x=share(x), y=y, width=share(_COLUMN), height=_BOX, rx=5, class_=f"box {style}"
    )
    centre = x + _COLUMN / 2
    first = _centred(centre, y + 16, shortened(head, 15), f"kind on-{style}")
    return box + first + _centred(centre, y + 31, shortened(below, 20), f"role on-{style}")


def _centred(x: float, y: float, words: str, style: str) -> Markup:
    return tag("text", words, x=share(x), y=y, text_anchor="middle", class_=style)


# -- what was skipped ----------------------------------------------------------------------------


def skipped_section(report: ValidationReport) -> Section:
    tables = []
    if report.unmatched:
        caption = "Norms of the reference that were not compared"
        tables.append(_by_reason(caption, report.unmatched))
    notes = []
    for model, word in ((report.reference, "reference"), (report.candidate, "candidate")):
        for step in model.history:
            notes += [Note("plain", f"{word}, {step.name}", note) for note in step.notes]
            if step.skipped:
                caption = f"Sites that {step.name} left alone ({word})"
                tables.append(_by_reason(caption, step.skipped))
    text = [*_history(report.candidate, "candidate"), *_history(report.reference, "reference")]
    if not tables:
        text.append("No norm was skipped.")
    return Section("skipped", "What was skipped, and why", text, notes=notes, tables=tables)


def _history(model: ModelSummary, word: str) -> list[str]:
    if model.history:
        return [f"The {word} went through: {', '.join(map(_step, model.history))}."]
    if word == "candidate":
        return ["The candidate does not say that normswap rewrote it."]
    return []


def _step(step: Step) -> str:
    skipped = f" and {len(step.skipped)} skipped" if step.skipped else ""
    return f"{step.name} ({counted(step.done, 'site')} done{skipped})"


def _by_reason(caption: str, skipped: Iterable[tuple[str, str]]) -> Table:
    """One row for each reason."""
    reasons: dict[str, list[str]] = {}
    for site, reason in skipped:
        reasons.setdefault(reason, []).append(site)
    rows = [
        [reason, str(len(sites)), ", ".join(gathered(sites))] for reason, sites in reasons.items()
    ]
    return Table(caption, ["reason", "count", "sites"], rows, numeric=["count"], names=["sites"])
