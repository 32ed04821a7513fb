"""The section on how evenly channels are filled, before and after."""

from __future__ import annotations

from collections.abc import Sequence

from normswap.parity.report import SiteRanges
from normswap.report.html.along import Point, depth_drawing, named_places
from normswap.report.html.parts import (
    Picture,
    Section,
    counted,
    number,
    role_name,
    table_of,
    tower_name,
)
from normswap.report.html.svg import logarithmic

_TEXT = (
    "The largest magnitude over that of the median channel, in float32. Integers with one scale "
    "for a tensor leave the median channel that share of their steps: at 8, of 256 steps 32."
)
_LEGEND = [("dot", "reference"), ("triangle", "candidate")]


def ranges_section(ranges: Sequence[SiteRanges]) -> Section:
    pictures = []
    for tower in dict.fromkeys(site.tower for site in ranges):
        sites = [site for site in ranges if site.tower == tower]
        for what in ("gives", "reads"):
            title = f"{tower_name(tower)}: channels of what each norm {what}"
            pictures.append(_picture(title, sites, what))
    return Section("ranges", "Ranges of channels", [_TEXT], pictures=pictures, wide=True)


def _picture(title: str, sites: Sequence[SiteRanges], what: str) -> Picture:
    gives = what == "gives"
    ratios = [site.gives_ratio if gives else site.reads_ratio for site in sites]
    kurtoses = [site.gives_kurtosis if gives else site.reads_kurtosis for site in sites]
    series = [
        [
            Point(pair[side], f"{site.name}: {_short(pair[side])} in the {words}", style)
            for site, pair in zip(sites, ratios, strict=True)
        ]
        for side, (style, words) in enumerate(_LEGEND)
    ]
    largest = [max((pair[side] or 0.0 for pair in ratios), default=0.0) for side in (0, 1)]
    said = f"the largest is {_short(largest[0])} before and {_short(largest[1])} after"
    description = f"{counted(len(sites), 'norm')}; {said}."
    scale = logarithmic([value for pair in ratios for value in pair if value])
    places, along = named_places([site.name for site in sites])
    axis = "largest over median channel, logarithmic"
    drawing = depth_drawing(title, description, axis, scale, series, places, along)
    rows = [
        {
            "norm": site.name,
            "role": role_name(site.role),
            "largest / median": _short(ratio[0]),
            "candidate's": _short(ratio[1]),
            "kurtosis": _short(kurtosis[0]),
            "candidate's kurtosis": _short(kurtosis[1]),
        }
        for site, ratio, kurtosis in zip(sites, ratios, kurtoses, strict=True)
    ]
    numeric = [name for name in rows[0] if name not in ("norm", "role")]
    return Picture(title, drawing, table_of("Every norm", rows, numeric, ["norm"]), _LEGEND)


def _short(value: float | None) -> str:
    return number(value, ".3g")
