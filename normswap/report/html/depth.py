"""The section on errors along the depth."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from normswap.parity.report import Bisection, SiteComparison, ValidationReport
from normswap.report.html.formats import (
    TO,
    counted,
    decibels,
    kind_name,
    number,
    role_name,
    shortened,
    times,
    tower_name,
)
from normswap.report.html.parts import Picture, Section, Table
from normswap.report.html.scales import linear, logarithmic
from normswap.report.html.svg_depth import Depth, Point, depth_drawing

_TITLE = "Error along the depth"
_MOST_PLACES = 8  # words along x that fit a phone
_LINEAR_UP_TO = 4.0
_DEEPEST = 1e-16  # a cosine that is 1 in float64


def depth_section(report: ValidationReport) -> Section:
    text = _bisection(report.bisection)
    if not report.sites:
        why = "No norm of the reference was compared with one of the candidate."
        if report.unmatched:
            why += " The reasons are below, under what was skipped."
        return Section("depth", _TITLE, [*text, why])
    how = {
        "exact": "At every matched norm: the error as a multiple of what is allowed, which is what "
        "rounding explains, judged in float64.",
        "approximate": "At every matched norm: SQNR and cosine, on the data of this comparison. "
        "Errors of the norms before are part of those behind.",
    }
    towers = dict.fromkeys(site.tower for site in report.sites)
    pictures: list[Picture] = []
    tables: list[Table] = []
    for tower in towers:
        sites = [site for site in report.sites if site.tower == tower]
        if all(site.max_abs_error == 0 for site in sites):
            text.append(f"{tower_name(tower)}: equal at all {counted(len(sites), 'norm')}.")
            continue
        draw = _exact_pictures if report.contract == "exact" else _approximate_pictures
        drawn = draw(tower, sites, _parting(sites, report.bisection))
        pictures += drawn
        tables += [] if drawn else [_table(sites)]
    text.insert(0, how[report.contract])
    return Section("depth", _TITLE, text, pictures=pictures, tables=tables, wide=True)


def _exact_pictures(
    tower: str, sites: Sequence[SiteComparison], parting: float | None
) -> list[Picture]:
    values = [site.excess for site in sites if site.excess is not None]
    if not values:
        return []
    scale = linear([*values, 1.0]) if max(values) <= _LINEAR_UP_TO else logarithmic([*values, 1.0])
    points = [
        Point(site.excess, f"{site.name}: {times(site.excess)}", _judged(site)) for site in sites
    ]
    unit = "error / allowed" + (", logarithmic" if scale.logarithmic else "")
    limit = (1.0, "allowed")
    depth = Depth(unit, scale, [points], _places(sites), _along(sites), limit, parting)
    failed = sum(site.passed is False for site in sites)
    title = f"{tower_name(tower)}: error / allowed at each norm"
    told = f"{len(sites)} norms; the largest is {times(max(values))}; {failed} are above 1."
    legend = [("dot", "within what is allowed"), ("cross", "above it")]
    return [Picture(title, depth_drawing(title, told, depth), _table(sites), legend)]


def _approximate_pictures(
    tower: str, sites: Sequence[SiteComparison], parting: float | None
) -> list[Picture]:
    finite = [site.sqnr_db for site in sites if site.sqnr_db is not None]
    pictures = []
    data = _table(sites)
    if finite or any(site.max_abs_error == 0 for site in sites):
        scale = linear(finite)
        points = [
            Point(math.inf if site.max_abs_error == 0 else site.sqnr_db, _sqnr_words(site))
            for site in sites
        ]
        unit = "SQNR in dB: higher is closer"
        depth = Depth(unit, scale, [points], _places(sites), _along(sites), None, parting)
        title = f"{tower_name(tower)}: SQNR at each norm"
        lowest = f"; the lowest is {min(finite):.1f} dB" if finite else ""
        drawing = depth_drawing(title, f"{len(sites)} norms{lowest}.", depth)
        pictures.append(Picture(title, drawing, data))
    distances = [d for site in sites for d in (_mean(site), _worst(site)) if d is not None]
    if distances:
        scale = logarithmic(distances)
        series = [
            [_cosine_point(site, _mean, "on average", "dot") for site in sites],
            [_cosine_point(site, _worst, "at worst", "triangle") for site in sites],
        ]
        unit = "1 - cosine, logarithmic: lower is closer"
        depth = Depth(unit, scale, series, _places(sites), _along(sites), None, parting)
        title = f"{tower_name(tower)}: 1 - cosine at each norm"
        told = f"{len(sites)} norms; the largest is {max(distances):.2e}."
        legend = [("dot", "mean of the rows"), ("triangle", "worst row")]
        pictures.append(Picture(title, depth_drawing(title, told, depth), data, legend))
    return pictures


def _sqnr_words(site: SiteComparison) -> str:
    value = decibels(site.sqnr_db, site.max_abs_error)
    return f"{site.name}: {value}" if value == "equal" else f"{site.name}: {value} dB"


def _cosine_point(
    site: SiteComparison,
    distance: Callable[[SiteComparison], float | None],
    words: str,
    style: str,
) -> Point:
    value = distance(site)
    return Point(value, f"{site.name}: {number(value)} {words}", style)


def _mean(site: SiteComparison) -> float | None:
    return None if site.cosine_mean is None else max(1 - site.cosine_mean, _DEEPEST)


def _worst(site: SiteComparison) -> float | None:
    return None if site.cosine_worst is None else max(1 - site.cosine_worst, _DEEPEST)


def _judged(site: SiteComparison) -> str:
    return "cross" if site.passed is False else "dot"


def _places(sites: Sequence[SiteComparison]) -> list[tuple[float, str]]:
    """Where new blocks begin, by their numbers, as many as fit; else the norms by theirs."""
    numbers = [str(index + 1) for index in range(len(sites))]
    words = [_block(site.name) for site in sites] if _numbered(sites) else numbers
    begun: dict[str, float] = {}
    for index, word in enumerate(words):
        if word is not None:
            begun.setdefault(word, (index + 0.5) / len(sites))
    places = [(at, word) for word, at in begun.items()]
    return places[:: -(-len(places) // _MOST_PLACES) or 1]


def _along(sites: Sequence[SiteComparison]) -> str:
    return "block" if _numbered(sites) else "norm, in the order of execution"


def _numbered(sites: Sequence[SiteComparison]) -> bool:
    """Whether block numbers tell the places apart: those of Swin begin anew in every stage."""
    blocks = [block for block in (_block(site.name) for site in sites) if block is not None]
    return len(set(blocks)) > 1 and [int(block) for block in blocks] == sorted(map(int, blocks))


def _block(name: str) -> str | None:
    found = re.search(r"(?:^|[./])(\d{1,4})(?=[./])", name)
    return found[1] if found else None


def _parting(sites: Sequence[SiteComparison], found: Bisection | None) -> float | None:
    if found is None or found.site is None:
        return None
    places = {site.name: index for index, site in enumerate(sites)}
    for name, offset in ((found.norm, 0.5), (found.after_norm, 1.0), (found.before_norm, 0.0)):
        if name in places:
            return (places[name] + offset) / len(sites)
    return None


def _bisection(found: Bisection | None) -> list[str]:
    if found is None:
        return []
    if found.site is None:
        return [found.note or "No place was found at which the models part."]
    operator = f" ({found.operator})" if found.operator else ""
    told = f"The models part first at {found.site}{operator}"
    if found.error is not None:
        told += f": error {number(found.error)}, allowed {number(found.allowed)}"
    told += f", on the probe {found.probe}." if found.probe else "."
    if found.norm:
        told += f" It belongs to the norm {found.norm}."
    if found.last_equal:
        names = ", ".join(shortened(name, 80) for name in found.last_equal[:4])
        more = f" and {len(found.last_equal) - 4} more" if len(found.last_equal) > 4 else ""
        told += f" What it is computed from agrees: {names}{more}."
    parts = [told]
    if found.note:
        parts.append(found.note)
    if found.reproducer:
        parts.append(f"The inputs that show it are in {found.reproducer} (for --data).")
    return parts


def _table(sites: Sequence[SiteComparison]) -> Table:
    head = ["norm", "role", "kind", "SQNR dB", "cosine", "worst", "max error"]
    judged = any(site.excess is not None for site in sites)
    if judged:
        head += ["error / allowed", "probe"]
    head += ["compared at"]
    rows = []
    for site in sites:
        kinds = [kind_name(kind) for kind in dict.fromkeys((site.kind, site.candidate_kind))]
        row = [
            site.name,
            role_name(site.role),
            f" {TO} ".join(kinds),
            decibels(site.sqnr_db, site.max_abs_error),
            number(site.cosine_mean, ".4f"),
            number(site.cosine_worst, ".4f"),
            number(site.max_abs_error),
        ]
        if judged:
            row += [times(site.excess), site.probe or "-"]
        at = "the norm's output" if site.at == "output" else site.at
        rows.append([*row, at])
    numeric = [*head[3:7], "error / allowed"]
    failed = [index for index, site in enumerate(sites) if site.passed is False]
    return Table("Every matched norm", head, rows, numeric, ["norm", "compared at"], failed)
