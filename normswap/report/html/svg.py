"""Charts as SVG: elements, axes, bars and intervals; those along the depth are in ``along.py``.

Pictures fill the width that they get: lengths along x are shares of it (``%``), those along y and
of text are pixels, so letters have the same size on a phone and on a desk. Colours are the page's,
light or dark, and each point says its name on hovering. matplotlib's SVG can do none of that: it is
for figures that are files of their own (train/study/figures.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from normswap.report.html.parts import shortened
from normswap.timing.bench_report import Ratio

_MOST_TICKS = 6
_SMALLEST = 1e-300  # of a span; below, its parts are no normal numbers
_HEAD, _BAR, _GAP = 20, 20, 12  # pixels, of bars
_LONGEST = 38  # letters of a bar's head that fit a phone
_MIDDLE = "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0"


# -- elements ------------------------------------------------------------------------------------


def tag(name: str, /, *children: Markup | str, **attributes: object) -> Markup:
    """An element. Underscores in attributes are hyphens (``class_`` is class); None is left out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(children)
    return Markup("<{}{}>{}</{}>").format(Markup(name), written, inside, Markup(name))


def share(fraction: float) -> str:
    """A length along x."""
    return f"{100 * fraction:.3f}%"


def line(x1: str, x2: str, y1: object, y2: object, style: str) -> Markup:
    return tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=style)


def label(words: str, x: object, y: object, style: str) -> Markup:
    return tag("text", words, x=x, y=y, class_=style)


def sign(x: float, y: float, path: str, title: str, style: str) -> Markup:
    """A small shape around a point; its title appears on hovering over it."""
    shape = tag("path", tag("title", title), d=path, class_=style)
    return tag("svg", shape, x=share(x), y=f"{y:.2f}", overflow="visible")


def picture(title: str, description: str, height: float, style: str, *children: Markup) -> Markup:
    """The whole drawing; ``description`` says in words what can be seen."""
    content = Markup("").join(children)
    key = hashlib.sha256(f"{title}\0{description}\0{content}".encode(errors="replace"))
    name = f"picture-{key.hexdigest()[:12]}"
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-text"),
        content,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-text",
        width="100%",
        height=f"{height:.0f}",
        class_=style,
    )


# -- axes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """From ``low`` (0) to ``high`` (1), of the logarithms where ``logarithmic``."""

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The place of ``value``; values outside are put at the end, NaN at the beginning."""
        if value <= self.low or math.isnan(value):
            return 0.0
        if value >= self.high:
            return 1.0
        if self.logarithmic:
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            every = -(-(last - first) // _MOST_TICKS)
            powers = range(first + (-first) % every, last + 1, every)
            return [(10.0**power, power_of_ten(power)) for power in powers]
        step = _step(self.high - self.low)
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [(index * step, f"{index * step:g}") for index in range(first, last + 1)]


def linear(values: Iterable[float]) -> Scale:
    """From zero, or below, up to a round number."""
    held = [value for value in values if math.isfinite(value)] or [1.0]
    low, high = min(0.0, *held), max(0.0, *held)
    if high - low < _SMALLEST:
        high = low + 1.0
    step = _step(high - low)
    return Scale(math.floor(low / step) * step, math.ceil(high / step) * step)


def logarithmic(values: Iterable[float]) -> Scale:
    """From power of ten to power of ten around the positive values."""
    held = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    low, high = math.floor(min(held)), math.ceil(max(held))
    return Scale(10.0**low, 10.0 ** max(high, low + 1), logarithmic=True)


def power_of_ten(power: int) -> str:
    return {0: "1", 1: "10", 2: "100", -1: "0.1", -2: "0.01"}.get(power, f"1e{power}")


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, a few of which make up ``span``."""
    power = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
    return next(f * power for f in (1, 2, 5, 10) if f * power * _MOST_TICKS >= span * (1 - 1e-9))


# -- bars and intervals --------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """``words``: behind its end. ``style``: 'reference' or 'candidate'. ``spread``: the ends of a
    thin line across the bar's end."""

    value: float
    words: str
    style: str
    spread: tuple[float, float] | None = None


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


def intervals_drawing(
    title: str, description: str, ratios: Sequence[tuple[str, Ratio, str]]
) -> Markup:
    """Each ratio, (head, ratio, words below the head), as a dot with its interval, and a line at 1,
    where there is no difference."""
    ends = [end for _, ratio, _ in ratios for end in (ratio.low, ratio.high, ratio.median)]
    reach = linear([1.15 * max(abs(end - 1) for end in ends), 0.1]).high
    at = Scale(1 - reach, 1 + reach).at
    parts: list[Markup] = []
    y = 0.0
    for head, ratio, words in ratios:
        middle = y + 54
        parts += [_head(head, y), label(words, 0, y + 32, "value")]
        parts.append(line("50%", "50%", middle - 14, middle + 14, "limit"))
        parts.append(_across(at(ratio.low), at(ratio.high), middle, "interval"))
        parts.append(sign(at(ratio.median), middle, _MIDDLE, words, "sign middle"))
        y = middle + 22
    below = [
        label(f"{1 - reach:g} faster", share(0.0), y + 14, "axis"),
        label("1, no change", share(0.5), y + 14, "tick"),
        label(f"slower {1 + reach:g}", share(1.0), y + 14, "axis end"),
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
    return Markup("").join(line(share(a), share(b), top, end, style) for a, b, top, end in lines)
