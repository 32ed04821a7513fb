"""A figure along the depth of a tower, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from normswap.report.html.scales import Scale
from normswap.report.html.svg import picture, share, sign, tag

_TOP, _PLOT, _BOTTOM = 44, 190, 40  # pixels
_SIGNS = {
    "dot": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "triangle": "M0-4.6L4.4 3.6H-4.4Z",
    "cross": "M-4-4L4 4M-4 4L4-4",
}


@dataclass(frozen=True)
class Point:
    """``value`` None: there is none. ``style``: 'dot', 'triangle' or 'cross'; ``words``: shown on
    hovering."""

    value: float | None
    words: str
    style: str = "dot"


@dataclass(frozen=True)
class Depth:
    """What is drawn: series of points, one for each place in depth, and what stands beside them.

    ``places``: (share of the depth, words) along x. ``limit``: a value with a line of its own, and
    its words; ``parting``: the share of the depth at which the models part.
    """

    axis: str
    scale: Scale
    series: Sequence[Sequence[Point]]
    places: Sequence[tuple[float, str]]
    along: str
    limit: tuple[float, str] | None = None
    parting: float | None = None


def depth_drawing(title: str, description: str, depth: Depth) -> Markup:
    """The points, joined by a line where neighbours both have a value."""
    parts = [tag("text", depth.axis, x=-52, y=12, class_="axis")]
    for value, words in depth.scale.ticks():
        y = _y(depth.scale, value)
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(tag("text", words, x=-8, y=f"{float(y) + 4:.2f}", class_="tick left"))
    bottom = _TOP + _PLOT
    for at, words in depth.places:
        parts.append(
            tag("line", x1=share(at), x2=share(at), y1=bottom, y2=bottom + 4, class_="grid")
        )
        parts.append(tag("text", words, x=share(at), y=bottom + 17, class_="tick"))
    parts.append(tag("text", depth.along, x="100%", y=bottom + 34, class_="axis end"))
    if depth.limit is not None:
        y = _y(depth.scale, depth.limit[0])
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="limit"))
        words = tag("text", depth.limit[1], x="100%", y=f"{float(y) - 5:.2f}", class_="limit-words")
        parts.append(words)
    if depth.parting is not None:
        parts += _parting(depth.parting)
    for number, points in enumerate(depth.series):
        parts += _curve(depth.scale, points, f"series-{number}")
    return picture(title, description, _TOP + _PLOT + _BOTTOM, "depth", *parts)


def _curve(scale: Scale, points: Sequence[Point], style: str) -> list[Markup]:
    lines, signs = [], []
    heights = [_height(scale, point) for point in points]
    for index, (point, y) in enumerate(zip(points, heights, strict=True)):
        if y is None:
            continue
        at = (index + 0.5) / len(points)
        behind = heights[index + 1] if index + 1 < len(points) else None
        if behind is not None:
            x1, x2 = share(at), share((index + 1.5) / len(points))
            lines.append(tag("line", x1=x1, y1=y, x2=x2, y2=behind, class_=f"curve {style}"))
        shape = _SIGNS[point.style]
        signs.append(sign(at, float(y), shape, point.words, f"sign {point.style} {style}"))
    return lines + signs


def _height(scale: Scale, point: Point) -> str | None:
    return None if point.value is None or math.isnan(point.value) else _y(scale, point.value)


def _parting(at: float) -> list[Markup]:
    x, right = share(at), at > 0.45
    words = "the models part here"
    style = "parting-words end" if right else "parting-words"
    line = tag("line", x1=x, x2=x, y1=_TOP - 14, y2=_TOP + _PLOT, class_="parting")
    return [line, tag("text", words, x=x, y=_TOP - 6, dx=-6 if right else 6, class_=style)]


def _y(scale: Scale, value: float) -> str:
    return f"{_TOP + _PLOT * (1 - scale.at(value)):.2f}"
