"""Bars, and intervals around one, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from normswap.report.html.formats import shortened
from normswap.report.html.scales import Scale, linear
from normswap.report.html.svg import picture, share, sign, tag

_HEAD, _BAR, _GAP = 20, 20, 12  # pixels
_LONGEST = 38  # letters of a head that fit a phone
_DOT = "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0"


@dataclass(frozen=True)
class Bar:
    """``words``: behind its end. ``spread``: a thin line across it. ``style``: 'reference' or
    'candidate'."""

    value: float
    words: str
    style: str
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Interval:
    """A ratio with its interval; ``words``: below its head."""

    head: str
    middle: float
    low: float
    high: float
    words: str


def bars_drawing(
    title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]], full: float | None
) -> Markup:
    """Groups of bars with their heads. ``full``: the value of the whole width, else a round one."""
    bars = [bar for _, group in groups for bar in group]
    ends = [bar.value for bar in bars] + [bar.spread[1] for bar in bars if bar.spread]
    scale = Scale(0.0, full or linear(ends).high or 1.0)
    parts: list[Markup] = []
    y = 0.0
    for head, group in groups:
        parts.append(_head(head, y))
        y += _HEAD
        for bar in group:
            parts += _bar(bar, scale, y)
            y += _BAR
        y += _GAP
    return picture(title, description, y, "bars", *parts)


def intervals_drawing(title: str, description: str, intervals: Sequence[Interval]) -> Markup:
    """Each ratio as a dot with its interval, and a line where nothing would differ."""
    reach = max(abs(end - 1) for item in intervals for end in (item.low, item.high, item.middle))
    reach = linear([1.15 * reach, 0.1]).high
    at = Scale(1 - reach, 1 + reach).at
    parts: list[Markup] = []
    y = 0.0
    for item in intervals:
        parts.append(_head(item.head, y))
        parts.append(tag("text", item.words, x=0, y=y + 32, class_="value"))
        middle = y + 54
        same = {"x1": "50%", "x2": "50%", "y1": middle - 14, "y2": middle + 14}
        parts.append(tag("line", **same, class_="limit"))
        parts.append(_across(at(item.low), at(item.high), middle, "interval"))
        parts.append(sign(at(item.middle), middle, _DOT, item.words, "sign middle"))
        y = middle + 22
    below = [
        tag("text", words, x=share(x), y=y + 14, class_=style)
        for x, words, style in [
            (0.0, f"{1 - reach:g} faster", "axis"),
            (0.5, "1, no change", "tick"),
            (1.0, f"slower {1 + reach:g}", "axis end"),
        ]
    ]
    return picture(title, description, y + 22, "intervals", *parts, *below)


def _head(words: str, y: float) -> Markup:
    shown = shortened(words, _LONGEST)
    return tag("text", tag("title", words), shown, x=0, y=y + 14, class_="bar-head")


def _bar(bar: Bar, scale: Scale, y: float) -> list[Markup]:
    end = scale.at(bar.value)
    style = f"bar {bar.style}"
    box = tag("rect", x=0, y=y + 2, width=share(end), height=_BAR - 5, rx=2, class_=style)
    parts = [box]
    behind = end
    if bar.spread is not None:
        low, high = map(scale.at, bar.spread)
        parts.append(_across(low, high, y + _BAR / 2 - 0.5, "spread"))
        behind = max(end, high)
    return parts + [tag("text", bar.words, x=share(behind), dx=7, y=y + 14, class_="value")]


def _across(low: float, high: float, y: float, style: str) -> Markup:
    lines = [(low, high, y, y), (low, low, y - 5, y + 5), (high, high, y - 5, y + 5)]
    return Markup("").join(
        tag("line", x1=share(a), x2=share(b), y1=top, y2=end, class_=style)
        for a, b, top, end in lines
    )
