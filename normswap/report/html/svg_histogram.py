"""How large errors are, as a picture: the original's own and the candidate's."""

from __future__ import annotations

import math
from itertools import pairwise

from markupsafe import Markup

from normswap.parity.report import Histogram, OutputErrors
from normswap.report.html.formats import percent
from normswap.report.html.scales import Scale, power_of_ten
from normswap.report.html.svg import picture, share, tag

_TOP, _PLOT, _BOTTOM = 24, 130, 40  # pixels
_ZERO = 0.1  # of the width: where errors of zero are counted, with the space beside it
_MOST_TICKS = 6


def histogram_drawing(title: str, description: str, errors: OutputErrors) -> Markup:
    """The share of elements by the size of their error: the candidate's filled, the original's as
    an outline; errors of zero in a column of their own on the left."""
    held = [errors.candidate] + ([errors.original] if errors.original else [])
    edges = [edge for histogram in held for edge in histogram.exponents]
    # Of the powers of ten, which lie evenly.
    scale = Scale(min(edges, default=0.0), max(edges, default=1.0))
    highest = max((max(_shares(histogram)) for histogram in held), default=0.0) or 1.0
    parts = [tag("text", "share of the elements", x=-52, y=10, class_="axis")]
    for value in (0.0, highest / 2, highest):
        y = _TOP + _PLOT * (1 - value / highest)
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(tag("text", _tick(value), x=-8, y=y + 4, class_="tick left"))
    parts += _columns(errors.candidate, scale, highest, "candidate")
    if errors.original is not None:
        parts += _columns(errors.original, scale, highest, "original")
    parts += _below(scale)
    return picture(title, description, _TOP + _PLOT + _BOTTOM, "histogram", *parts)


def _shares(histogram: Histogram) -> list[float]:
    total = (sum(histogram.counts) + histogram.zeros) or 1
    return [count / total for count in (histogram.zeros, *histogram.counts)]


def _columns(histogram: Histogram, scale: Scale, highest: float, style: str) -> list[Markup]:
    ends = [_ZERO + (1 - _ZERO) * scale.at(edge) for edge in histogram.exponents]
    powers = [f"{edge:g}" for edge in histogram.exponents]
    places = [(0.0, _ZERO * 0.7, "no error"), *zip(ends, ends[1:], _between(powers), strict=False)]
    found = []
    for (left, right, where), part in zip(places, _shares(histogram), strict=False):
        if part > 0:
            height = max(_PLOT * part / highest, 1.0)
            words = tag("title", f"{style}: {percent(part)} of the elements, {where}")
            found.append(
                tag(
                    "rect",
                    words,
                    x=share(left),
                    width=share(max(right - left, 0.0)),
                    y=f"{_TOP + _PLOT - height:.2f}",
                    height=f"{height:.2f}",
                    class_=f"column {style}",
                )
            )
    return found


def _between(powers: list[str]) -> list[str]:
    return [f"10^{low} to 10^{high}" for low, high in pairwise(powers)]


def _below(scale: Scale) -> list[Markup]:
    y = _TOP + _PLOT + 16
    low, high = math.ceil(scale.low), math.floor(scale.high)
    step = max(1, -(-(high - low) // _MOST_TICKS))
    parts = [tag("text", "0", x=share(_ZERO * 0.35), y=y, class_="tick")]
    for power in range(high, low, -step):  # the lowest has no room beside the zero
        x = share(_ZERO + (1 - _ZERO) * scale.at(power))
        parts.append(tag("text", power_of_ten(power), x=x, y=y, class_="tick"))
    words = "error / largest value of the output"
    return [*parts, tag("text", words, x="100%", y=y + 18, class_="axis end")]


def _tick(share: float) -> str:
    """'100 %' without decimals: there is no room for them."""
    return percent(share) if share < 1 else "100\N{NO-BREAK SPACE}%"
