"""The headroom of a model for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from normswap.graph.operators import operator
from normswap.precision.constants import LostConstant
from normswap.precision.formats import FORMATS
from normswap.precision.headroom import Headroom, NormHeadroom, Place
from normswap.report.line import Line
from normswap.report.terminal import table

_SHOWN = 10
_BAD, _GOOD, _DIM = "bold red", "green", "dim"


def headroom_view(found: Headroom) -> RenderableType:
    """A row for each norm, the first place that goes over, and the others with the least room."""
    title = f"{found.model}: headroom in half precision on {found.samples} samples"
    parts: list[RenderableType] = [Line(title, "bold")]
    if found.norms:
        parts.append(_norms(found.norms))
    parts += [_first(found, name) for name in FORMATS]
    parts += [Line(words, _BAD if bad else _DIM) for words, bad in constant_lines(found.constants)]
    if others := most_pressing(found):
        title = "other values with the least room (--json lists all that go over)"
        parts += [Line(title, _DIM), _places(others[:_SHOWN])]
    return Group(*parts)


def constant_lines(constants: Iterable[LostConstant]) -> Iterator[tuple[str, bool]]:
    """A line for each number that a format changes, and whether that changes a model: a number that
    stands for infinity and small weights do not."""
    alike: dict[tuple[float, bool, str, float], list[LostConstant]] = {}
    for constant in constants:
        for name, becomes in constant.becomes.items():
            key = constant.number, constant.is_single, name, becomes
            alike.setdefault(key, []).append(constant)
    for (number, single, name, becomes), group in alike.items():
        count, first = sum(constant.readers for constant in group), group[0]
        where = f"{count} operators, first " * (count > 1) + f"'{first.name}' ({first.operator})"
        what = f"{number:.3g}" if single else f"weights of at most {number:.3g}"
        change = f"becomes {becomes:.6g}"
        if becomes in (0, math.inf):
            change = "is beyond what there is" if becomes else "is 0"
        changes_it = becomes == math.inf or (single and not becomes)
        yield f"{what}: {change} in {name}, {where}", changes_it


def _norms(norms: Sequence[NormHeadroom]) -> Table:
    inside = any(norm.inside is not None for norm in norms)
    columns = ["norm", "input", *FORMATS, *["inside"] * inside, "eps in float16"]
    made = table(*columns, numeric=columns[1:])
    for norm in norms:
        stream = norm.stream
        cells = [norm.site.name, _size(stream.largest)]
        lines = [*map(Line, cells), *(_left(stream, name) for name in FORMATS)]
        if inside:
            lines.append(Line("-") if norm.inside is None else _inner(norm.inside))
        rounded = norm.epsilon("float16")
        lines.append(Line(f"{rounded:.3g}", "" if rounded else _BAD))
        made.add_row(*lines)
    return made


def _places(places: Sequence[Place]) -> Table:
    columns = ["value", "operator", "what", "magnitude", *FORMATS]
    made = table(*columns, numeric=columns[3:])
    for place in places:
        cells = [place.name, place.operator, place.kind, _size(place.largest)]
        made.add_row(*map(Line, cells), *(_left(place, name) for name in FORMATS))
    return made


def _first(found: Headroom, name: str) -> Line:
    place = found.first_over(name)
    if place is None:
        return Line(f"{name}: nothing goes over", _GOOD)
    at = f"'{place.name}' ({place.operator})" if place.operator else f"the input '{place.name}'"
    count = len(found.over(name))
    more = f", and {count - 1} more" if count > 1 else ""
    limit = f"{FORMATS[name].largest:.4g}"
    return Line(f"{name}: {at} is the first beyond {limit}: {_size(place.largest)}{more}", _BAD)


def most_pressing(found: Headroom) -> list[Place]:
    """What no norm reads or has inside, and is not only moved, in the order of how large it is."""
    others = [
        place
        for place in found.places
        if place.kind not in ("stream", "norm") and not operator(place.operator).passes_through
    ]
    return sorted(others, key=lambda place: -place.largest)


def _inner(place: Place) -> Line:
    return Line(_size(place.largest), _BAD if place.places("float16") < 0 else "")


def _left(place: Place, name: str) -> Line:
    """The binary places that are left."""
    left = place.places(name)
    return Line(f"{left:.1f}", _BAD if left < 0 else "")


def _size(magnitude: float) -> str:
    return f"{magnitude:.4g}"
