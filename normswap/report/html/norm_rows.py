"""The norms of two models side by side, repeated blocks told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normswap.parity.report import Norm, SiteComparison, ValidationReport

_LARGEST_BLOCK = 16
_MOST_LINES = 40  # of a picture


@dataclass(frozen=True)
class NormRow:
    """A norm of the reference and what is in its place in the candidate.

    ``state``: 'kept', 'swapped' (another kind), 'gone', 'new' (``before`` is None) or 'unmatched'
    (nobody knows what became of it).
    """

    before: Norm | None
    after: Norm | None
    after_kind: str | None
    state: str

    @property
    def norm(self) -> Norm | None:
        return self.before or self.after


@dataclass(frozen=True)
class Block:
    """Rows that come ``len(copies)`` times, alike but for their names."""

    copies: list[list[NormRow]]


@dataclass(frozen=True)
class Blocks:
    """What is drawn of a tower. ``ordered``: in the order of execution."""

    blocks: list[Block]
    ordered: bool = True


def norm_rows(report: ValidationReport) -> dict[str, list[NormRow]]:
    """The rows of each tower, in the order of execution."""
    towers = dict.fromkeys(
        norm.tower for model in (report.reference, report.candidate) for norm in model.norms
    )
    sites = {site.name: site for site in report.sites}
    lost = {name for name, _ in report.unmatched}
    return {
        tower: _side_by_side(
            [norm for norm in report.reference.norms if norm.tower == tower],
            [norm for norm in report.candidate.norms if norm.tower == tower],
            sites,
            lost,
        )
        for tower in towers
    }


def blocks(rows: Sequence[NormRow]) -> Blocks:
    """The rows with runs of blocks that are alike as one block.

    Where that leaves too many, roles and widths do not count; where that still does, all rows of
    the same kinds are one, wherever they are.
    """
    for signature in (_signature, _kinds):
        found = _collapsed(rows, [signature(row) for row in rows])
        if sum(len(block.copies[0]) for block in found) <= _MOST_LINES:
            return Blocks(found)
    alike: dict[tuple[object, ...], list[list[NormRow]]] = {}
    for row in rows:
        alike.setdefault(_kinds(row), []).append([row])
    return Blocks([Block(copies) for copies in alike.values()], ordered=False)


def _side_by_side(
    ours: Sequence[Norm],
    theirs: Sequence[Norm],
    sites: dict[str, SiteComparison],
    lost: set[str],
) -> list[NormRow]:
    places = {norm.name: index for index, norm in enumerate(theirs)}
    named = {norm.name for norm in ours if norm.name in places}
    rows: list[NormRow] = []
    shown = 0  # how many of theirs have a row
    for norm in ours:
        site = sites.get(norm.name)
        place = places.get(norm.name)
        if place is None and norm.name not in lost and (site is None or site.candidate_kind):
            place = _renamed(norm, site, theirs, shown, named)
        if place is None or place < shown:
            kind = site.candidate_kind if site else None
            rows.append(NormRow(norm, None, kind, _state(norm, kind, norm.name in lost)))
            continue
        rows += [NormRow(None, new, new.kind, "new") for new in theirs[shown:place]]
        kind = theirs[place].kind
        rows.append(NormRow(norm, theirs[place], kind, _state(norm, kind, False)))
        shown = place + 1
    return rows + [NormRow(None, new, new.kind, "new") for new in theirs[shown:]]


def _renamed(
    norm: Norm,
    site: SiteComparison | None,
    theirs: Sequence[Norm],
    shown: int,
    named: set[str],
) -> int | None:
    """The next norm of the same role, and of the kind that was found there, before one whose name
    is known in both models."""
    for index in range(shown, len(theirs)):
        other = theirs[index]
        if other.name in named:
            return None
        if other.role == norm.role and site is None:
            return index
        if other.role == norm.role and site is not None and other.kind == site.candidate_kind:
            return index
    return None


def _state(norm: Norm, kind: str | None, lost: bool) -> str:
    if kind is None:
        return "unmatched" if lost else "gone"
    return "kept" if kind == norm.kind else "swapped"


def _signature(row: NormRow) -> tuple[object, ...]:
    norm = row.norm
    assert norm is not None
    return (*_kinds(row), norm.role, norm.width)


def _kinds(row: NormRow) -> tuple[object, ...]:
    return (row.before.kind if row.before else None, row.after_kind, row.state)


def _collapsed(rows: Sequence[NormRow], signatures: Sequence[tuple[object, ...]]) -> list[Block]:
    found: list[Block] = []
    index = 0
    while index < len(rows):
        size, count = _longest_run(signatures, index)
        starts = range(index, index + size * count, size)
        found.append(Block([list(rows[start : start + size]) for start in starts]))
        index += size * count
    return found


def _longest_run(signatures: Sequence[tuple[object, ...]], start: int) -> tuple[int, int]:
    """The size of a block that repeats from ``start`` on, and how often; (1, 1) if none does."""
    best = (1, 1)
    for size in range(1, min(_LARGEST_BLOCK, (len(signatures) - start) // 2) + 1):
        block = signatures[start : start + size]
        count = 1
        while signatures[start + count * size :][:size] == block:
            count += 1
        if count > 1 and size * count > best[0] * best[1]:
            best = (size, count)
    return best
