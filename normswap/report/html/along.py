"""Charts along the depth of a model, as SVG: points, curves and bars, one for each place."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from normswap.report.html.svg import Scale, label, line, picture, share, sign, tag

_TOP, _PLOT, _BOTTOM = 44, 190, 40  # pixels
_MOST_PLACES = 8  # words along x that fit a phone
_WIDTH = 0.6  # of a bar, of the room that there is for it
_SIGNS = {
    "dot": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "triangle": "M0-4.6L4.4 3.6H-4.4Z",
    "diamond": "M0-4.8L4.8 0L0 4.8L-4.8 0Z",
    "cross": "M-4-4L4 4M-4 4L4-4",
}


@dataclass(frozen=True)
class Point:
    """``value``: None leaves a gap. ``style``: 'dot', 'triangle', 'diamond' or 'cross', of a bar
    nothing, and further classes of the style file; ``words``: shown on hovering."""

    value: float | None
    words: str
    style: str = "dot"


def depth_drawing(
    title: str,
    description: str,
    axis: str,
    scale: Scale,
    series: Sequence[Sequence[Point]],
    places: Sequence[tuple[float, str]],
    along: str,
    limit: tuple[float, str] | None = None,
    parting: float | None = None,
) -> Markup:
    """Series of points, one for each place, joined by a line where neighbours both have a value.

    ``axis``, ``along``: words at the two axes; ``places``: (share of the depth, words) along x.
    ``limit``: a value marked by a line, and its words; ``parting``: the share of the depth at which
    the models part.
    """
    parts = _frame(axis, scale, places, along)
    if limit is not None:
        above = f"{float(_y(scale, limit[0])) - 5:.2f}"
        parts += [_line_at(scale, limit[0]), label(limit[1], "100%", above, "limit-words")]
    if parting is not None:
        x, right = share(parting), parting > 0.45
        style = "parting-words end" if right else "parting-words"
        words, dx = "the models part here", -6 if right else 6
        parts.append(line(x, x, _TOP - 14, _TOP + _PLOT, "parting"))
        parts.append(tag("text", words, x=x, y=_TOP - 6, dx=dx, class_=style))
    for index, points in enumerate(series):
        parts += _lines(scale, points, index) + _points(scale, points, index)
    return picture(title, description, _TOP + _PLOT + _BOTTOM, "depth", *parts)


def level_drawing(
    title: str,
    description: str,
    axis: str,
    scale: Scale,
    bars: Sequence[Point],
    series: Sequence[Sequence[Point]],
    places: Sequence[tuple[float, str]],
    along: str,
    level: float,
) -> Markup:
    """A bar for each place, from the line at ``level`` up or down to its own value, and series of
    points over them. The rest is as in ``depth_drawing``."""
    parts = _frame(axis, scale, places, along)
    parts += [*_bars(scale, level, bars), _line_at(scale, level)]
    for index, points in enumerate(series, 1):
        parts += _points(scale, points, index)
    return picture(title, description, _TOP + _PLOT + _BOTTOM, "depth", *parts)


def named_places(names: Sequence[str]) -> tuple[list[tuple[float, str]], str]:
    """Words along x for norms of these names, as many as fit, each with its share of the depth, and
    what they are: the numbers of blocks where new ones begin; where blocks have no usable numbers,
    those of the norms."""
    blocks = [_block(name) for name in names]
    known = [block for block in blocks if block is not None]
    # Block numbers tell the places apart unless they begin anew in every stage, as in Swin.
    numbered = len(set(known)) > 1 and [int(b) for b in known] == sorted(map(int, known))
    words = blocks if numbered else [str(index + 1) for index in range(len(names))]
    begun: dict[str, float] = {}
    for index, word in enumerate(words):
        if word is not None:
            begun.setdefault(word, (index + 0.5) / len(names))
    places = [(at, word) for word, at in begun.items()]
    places = places[:: -(-len(places) // _MOST_PLACES) or 1]
    return places, "block" if numbered else "norm, in the order of execution"


def _block(name: str) -> str | None:
    match = re.search(r"(?:^|[./])(\d{1,4})(?=[./])", name)
    return match[1] if match else None


def _frame(
    axis: str, scale: Scale, places: Sequence[tuple[float, str]], along: str
) -> list[Markup]:
    parts = [label(axis, -52, 12, "axis")]
    for value, words in scale.ticks():
        y = _y(scale, value)
        parts.append(line("0", "100%", y, y, "grid"))
        parts.append(label(words, -8, f"{float(y) + 4:.2f}", "tick left"))
    bottom = _TOP + _PLOT
    for at, words in places:
        parts.append(line(share(at), share(at), bottom, bottom + 4, "grid"))
        parts.append(label(words, share(at), bottom + 17, "tick"))
    return [*parts, label(along, "100%", bottom + 34, "axis end")]


def _line_at(scale: Scale, value: float) -> Markup:
    y = _y(scale, value)
    return line("0", "100%", y, y, "limit")


def _lines(scale: Scale, points: Sequence[Point], index: int) -> list[Markup]:
    heights = [_height(scale, point) for point in points]
    pairs = itertools.pairwise(heights)
    return [
        tag(
            "line",
            x1=share((at + 0.5) / len(points)),
            y1=y,
            x2=share((at + 1.5) / len(points)),
            y2=following,
            class_=f"curve series-{index}",
        )
        for at, (y, following) in enumerate(pairs)
        if y is not None and following is not None
    ]


def _points(scale: Scale, points: Sequence[Point], index: int) -> list[Markup]:
    signs = []
    for at, point in enumerate(points):
        if (y := _height(scale, point)) is not None:
            style = f"sign {point.style} series-{index}"
            x = (at + 0.5) / len(points)
            signs.append(sign(x, float(y), _SIGNS[point.style.split()[0]], point.words, style))
    return signs


def _bars(scale: Scale, start: float, points: Sequence[Point]) -> list[Markup]:
    level, bars = float(_y(scale, start)), []
    for at, point in enumerate(points):
        if (end := _height(scale, point)) is None:
            continue
        top, height = min(level, float(end)), abs(level - float(end))
        bars.append(
            tag(
                "rect",
                tag("title", point.words),
                x=share((at + (1 - _WIDTH) / 2) / len(points)),
                y=f"{top:.2f}",
                width=share(_WIDTH / len(points)),
                height=f"{max(height, 1):.2f}",
                class_=f"bar {point.style}",
            )
        )
    return bars


def _height(scale: Scale, point: Point) -> str | None:
    unknown = point.value is None or math.isnan(point.value)
    return None if unknown or point.value is None else _y(scale, point.value)


def _y(scale: Scale, value: float) -> str:
    return f"{_TOP + _PLOT * (1 - scale.at(value)):.2f}"
