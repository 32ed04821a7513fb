"""The section on norms before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from normswap.parity.report import ValidationReport
from normswap.report.html.formats import (
    counted,
    kind_name,
    kinds_present,
    role_name,
    tower_name,
)
from normswap.report.html.norm_rows import NormRow, blocks, norm_rows
from normswap.report.html.parts import Picture, Section, Table
from normswap.report.html.svg_towers import tower_drawing

_WORDS = {
    "kept": "kept",
    "swapped": "swapped for another kind",
    "gone": "gone",
    "new": "new",
    "unmatched": "not matched",
}


def norms_section(report: ValidationReport) -> Section:
    towers = norm_rows(report)
    if not towers:
        text = "No norm was located in either model, so there is nothing to draw."
        return Section("norms", "Norms before and after", [text])
    before, after = kinds_present(report.reference), kinds_present(report.candidate)
    text = f"The reference has {before}; the candidate has {after}. Depth goes down the page."
    pictures = [_picture(tower, rows) for tower, rows in towers.items()]
    return Section("norms", "Norms before and after", [text], pictures=pictures)


def _picture(tower: str, rows: Sequence[NormRow]) -> Picture:
    title = f"{tower_name(tower)}: norms before and after"
    states = Counter(row.state for row in rows)
    told = ", ".join(f"{states[state]} {words}" for state, words in _WORDS.items() if states[state])
    drawn = blocks(rows)
    drawing = tower_drawing(title, f"{counted(len(rows), 'norm')}: {told}.", drawn.blocks)
    caption = f"{tower_name(tower)}: {told}"
    if not drawn.ordered:
        caption += "; too many to draw in depth, those of the same kinds are one"
    return Picture(caption, drawing, _table(rows))


def _table(rows: Sequence[NormRow]) -> Table:
    head = ["norm", "role", "width", "before", "after", ""]
    cells = []
    for row in rows:
        norm = row.norm
        assert norm is not None
        before = kind_name(row.before.kind if row.before else None)
        kinds = [before, kind_name(row.after_kind), _WORDS[row.state]]
        cells.append([norm.name, role_name(norm.role), str(norm.width), *kinds])
    return Table("Every norm", head, cells, numeric=["width"], names=["norm"])
