"""The page on headroom: along the depth, what is left to what half precision holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from normswap.parity.report import Provenance
from normswap.precision.formats import FORMATS
from normswap.precision.headroom import Headroom, NormHeadroom, Place
from normswap.report.headroom import constant_lines, most_pressing
from normswap.report.html.along import Point, level_drawing, named_places
from normswap.report.html.document import Page, provenance_section, write_page
from normswap.report.html.parts import (
    KeyFigure,
    Note,
    Picture,
    Section,
    Table,
    Verdict,
    counted,
    listed,
    number,
    role_name,
    table_of,
    tower_name,
)
from normswap.report.html.svg import linear

_NEAR = 32  # binary places; where all leave more there is nothing to see
_SHOWN = 20
_HALF = "float16"
_GOOD, _BAD = ("good", "\N{CHECK MARK}"), ("bad", "\N{BALLOT X}")


def write_headroom(found: Headroom, path: Path, made: Provenance | None = None) -> None:
    """Writes the page to ``path``, whole or not at all; ``made``: what made it.

    Raises NormswapError where it cannot be written.

    Examples:
        >>> write_headroom(headroom(model, data="images"), Path("headroom.html"))
    """
    write_page(headroom_page(found, made), path)


def headroom_page(found: Headroom, made: Provenance | None = None) -> Page:
    """The page, with its sections in their order."""
    sections = [
        _findings(found),
        _depth(found),
        _others(found),
        provenance_section(made, []),
    ]
    measure = f"headroom in half precision on {counted(found.samples, 'sample')}"
    return Page([found.model], _verdict(found), measure, _figures(found), sections)


# -- the top -------------------------------------------------------------------------------------


def _verdict(found: Headroom) -> Verdict:
    over, lost = found.over(_HALF), _lost(found)
    sentences = [_first(found, name) for name in FORMATS]
    if lost:
        zeros = listed(dict.fromkeys(f"{n:.3g}" for n in lost))
        sentences.append(f"{_HALF} makes 0 of the constants {zeros}.")
    if over:
        return Verdict(*_BAD, f"{_HALF} does not hold all of it.", sentences)
    if lost:
        return Verdict(*_BAD, f"{_HALF} makes 0 of what is no 0.", sentences)
    return Verdict(*_GOOD, f"{_HALF} holds all of it.", sentences)


def _first(found: Headroom, name: str) -> str:
    place = found.first_over(name)
    if place is None:
        least = min((p.places(name) for p in found.places), default=math.inf)
        left = "" if math.isinf(least) else f"; at least {least:.1f} binary places are left"
        return f"Nothing goes over in {name}{left}."
    more = len(found.over(name)) - 1
    behind = f", and {more:,} more" if more else ""
    limit = f"{FORMATS[name].largest:.4g}"
    return (
        f"{_called(place)} is the first beyond {limit}, what {name} holds: {_size(place)}{behind}."
    )


def _called(place: Place) -> str:
    return f"{place.name} ({place.operator})" if place.operator else f"The input {place.name}"


def _lost(found: Headroom) -> list[float]:
    return [c.number for c in found.constants if c.is_single and c.becomes.get(_HALF) == 0]


def _figures(found: Headroom) -> list[KeyFigure]:
    least = min((p.places(_HALF) for p in found.places), default=math.inf)
    norms = [norm for norm in found.norms if _least(norm) < 0]
    left = "all" if math.isinf(least) else f"{least:.1f}"
    return [
        KeyFigure(left, f"binary places left in {_HALF}", "the fewest of any value"),
        KeyFigure(str(len(found.over(_HALF))), f"values beyond {_HALF}", f"of {len(found.places)}"),
        KeyFigure(str(len(norms)), "norms that read or hold one", f"of {len(found.norms)}"),
        KeyFigure(str(len(_lost(found))), f"constants that are 0 in {_HALF}"),
    ]


def _least(norm: NormHeadroom) -> float:
    places = [p for p in (norm.stream, norm.inside) if p is not None]
    return min(place.places(_HALF) for place in places)


# -- sections ------------------------------------------------------------------------------------


def _findings(found: Headroom) -> Section:
    notes = [
        Note("bad", "goes over", _first(found, name))
        for name in FORMATS
        if found.first_over(name) is not None
    ]
    for words, bad in constant_lines(found.constants):
        notes.append(Note("bad" if bad else "plain", "constant", words))
    for name in FORMATS:
        gone = [place for place in found.places if place.vanishes(name)]
        if gone:
            most = max(gone, key=lambda place: place.largest)
            words = (
                f"{name} makes 0 of all of {counted(len(gone), 'value')}, the largest "
                f"{_size(most)} at {_called(most)}."
            )
            notes.append(Note("warn", "underflows", words))
    text = []
    if found.over(_HALF):
        text.append(
            "What helps: --to rescale divides streams by powers of two, exactly; --to fused writes "
            "norms as operators, whose statistics are float32; --dtype leaves named islands."
        )
    text += [] if notes else ["Nothing goes over, no constant is lost and nothing underflows."]
    return Section("findings", "What goes over, and what underflows", text, notes=notes)


def _depth(found: Headroom) -> Section:
    title = "Headroom along the depth"
    if not found.norms:
        return Section("depth", title, ["No norm was found, so the depth has no marks."])
    text = [
        "At every norm the binary places that are left: how many times the largest magnitude may "
        "double before the format does not hold it. Below 0 it overflows."
    ]
    pictures = []
    for tower in dict.fromkeys(norm.site.tower for norm in found.norms):
        norms = [norm for norm in found.norms if norm.site.tower == tower]
        for name in FORMATS:
            fewest = min(place.places(name) for norm in norms for place in _places(norm))
            if name == _HALF or fewest < _NEAR:
                pictures.append(_picture(tower_name(tower), norms, name))
            else:
                whole = "all" if math.isinf(fewest) else f"{fewest:.0f} or more"
                text.append(f"{tower_name(tower)}: {name} has {whole} left at every norm.")
    return Section("depth", title, text, pictures=pictures, wide=True)


def _places(norm: NormHeadroom) -> list[Place]:
    return [p for p in (norm.stream, norm.inside, norm.behind) if p is not None]


def _picture(tower: str, norms: Sequence[NormHeadroom], name: str) -> Picture:
    bars = [_point(norm.stream, norm.site.name, name, "candidate") for norm in norms]
    inside = [_point(norm.inside, norm.site.name, name, "triangle") for norm in norms]
    behind = [_point(norm.behind, norm.site.name, name, "diamond") for norm in norms]
    end = f"{FORMATS[name].largest:.5g}, the largest number of {name}"
    legend = [("limit", end), ("candidate", "what the norm reads")]
    if any(point.value is not None for point in inside):
        legend.append(("triangle", "the largest inside a norm that is spelled out"))
    if any(point.value is not None for point in behind):
        legend.append(("diamond", "the largest behind it, up to the next norm"))
    values = [p.value for p in (*bars, *inside, *behind) if p.value is not None]
    if any(value < 0 for value in values):
        legend.append(("over", "beyond it"))
    lowest = f"; the fewest are {min(values):.1f}" if values else ""
    title = f"{tower}: binary places left in {name}"
    drawing = level_drawing(
        title,
        f"{len(norms)} norms{lowest}; {sum(value < 0 for value in values)} values are beyond.",
        "binary places left: below 0 it overflows",
        linear(values),
        bars,
        [inside, behind],
        *named_places([norm.site.name for norm in norms]),
        level=0.0,
    )
    return Picture(title, drawing, _table(norms), legend)


def _point(place: Place | None, site: str, name: str, style: str) -> Point:
    left = math.inf if place is None else place.places(name)
    if place is None or math.isinf(left):
        return Point(None, "")
    words = f"{site}: {_called(place)}, {_size(place)}, {left:.1f} binary places"
    return Point(left, words, style if left >= 0 else f"{style} over")


def _table(norms: Sequence[NormHeadroom]) -> Table:
    rows = []
    for norm in norms:
        row = {
            "norm": norm.site.name,
            "role": role_name(norm.site.role),
            "reads": _size(norm.stream),
            **{name: _left(norm.stream, name) for name in FORMATS},
        }
        for head, place in (("inside", norm.inside), ("behind", norm.behind)):
            row[head] = "-" if place is None else _size(place)
            row[f"{head}, {_HALF}"] = "-" if place is None else _left(place, _HALF)
        row[f"epsilon in {_HALF}"] = f"{norm.epsilon(_HALF):.3g}"
        rows.append(row)
    numeric = [head for head in rows[0] if head not in ("norm", "role")]
    failed = [any(place.places(_HALF) < 0 for place in _places(norm)) for norm in norms]
    return table_of("Every norm", rows, numeric, ["norm"], failed)


def _others(found: Headroom) -> Section:
    title = "Other values with the least room"
    others = most_pressing(found)[:_SHOWN]
    if not others:
        return Section("values", title, ["The norms' own values are all that there is."])
    rows = [
        {
            "value": place.name,
            "operator": place.operator or "input",
            "what": place.kind,
            "magnitude": _size(place),
            **{name: _left(place, name) for name in FORMATS},
        }
        for place in others
    ]
    failed = [place.places(_HALF) < 0 for place in others]
    table = table_of("Values that no norm reads", rows, ["magnitude", *FORMATS], ["value"], failed)
    return Section("values", title, tables=[table])


def _size(place: Place) -> str:
    return number(place.largest, ".4g")


def _left(place: Place, name: str) -> str:
    left = place.places(name)
    return "all" if math.isinf(left) else f"{left:.1f}"
