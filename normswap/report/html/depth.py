"""The section on errors along the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normswap.parity.report import Bisection, SiteComparison, ValidationReport
from normswap.report.html.along import Point, depth_drawing, named_places
from normswap.report.html.parts import (
    TO,
    Picture,
    Section,
    Table,
    closeness,
    counted,
    decibels,
    kind_name,
    number,
    role_name,
    shortened,
    table_of,
    times,
    tower_name,
)
from normswap.report.html.svg import Scale, linear, logarithmic

_TITLE = "Error along the depth"
_LINEAR_UP_TO = 4.0
_DEEPEST = 1e-16  # a cosine that is 1 in float64
_HOW = {
    "exact": "At every matched norm: the error as a multiple of what is allowed, which is what "
    "rounding explains, judged in float64.",
    "approximate": "At every matched norm: SQNR and cosine, on the data of this comparison. "
    "Errors of the norms before are part of those behind.",
}


def depth_section(report: ValidationReport) -> Section:
    text = _bisection(report.bisection)
    if not report.sites:
        why = "No norm of the reference was compared with one of the candidate."
        if report.unmatched:
            why += " The reasons are below, under what was skipped."
        return Section("depth", _TITLE, [*text, why])
    pictures: list[Picture] = []
    tables: list[Table] = []
    for tower in dict.fromkeys(site.tower for site in report.sites):
        sites = [site for site in report.sites if site.tower == tower]
        if all(site.max_abs_error == 0 for site in sites):
            text.append(f"{tower_name(tower)}: equal at all {counted(len(sites), 'norm')}.")
            continue
        draw = _exact_pictures if report.contract == "exact" else _approximate_pictures
        drawn = draw(tower_name(tower), sites, _parting(sites, report.bisection))
        pictures += drawn
        tables += [] if drawn else [_table(sites)]
    text.insert(0, _HOW[report.contract])
    return Section("depth", _TITLE, text, pictures=pictures, tables=tables, wide=True)


def _exact_pictures(
    tower: str, sites: Sequence[SiteComparison], parting: float | None
) -> list[Picture]:
    values = [site.excess for site in sites if site.excess is not None]
    if not values:
        return []
    scale = linear([*values, 1.0]) if max(values) <= _LINEAR_UP_TO else logarithmic([*values, 1.0])
    points = [
        Point(s.excess, f"{s.name}: {times(s.excess)}", "cross" if s.passed is False else "dot")
        for s in sites
    ]
    axis = "error / allowed" + (", logarithmic" if scale.logarithmic else "")
    title = f"{tower}: error / allowed at each norm"
    failed = sum(site.passed is False for site in sites)
    summary = f"; the largest is {times(max(values))}; {failed} are above 1"
    legend = [("dot", "within what is allowed"), ("cross", "above it")]
    limit = (1.0, "allowed")
    return [_picture(sites, title, summary, axis, scale, [points], parting, limit, legend)]


def _approximate_pictures(
    tower: str, sites: Sequence[SiteComparison], parting: float | None
) -> list[Picture]:
    pictures = []
    finite = [site.sqnr_db for site in sites if site.sqnr_db is not None]
    if finite or any(site.max_abs_error == 0 for site in sites):
        points = [
            Point(math.inf if site.max_abs_error == 0 else site.sqnr_db, _sqnr_words(site))
            for site in sites
        ]
        title, axis = f"{tower}: SQNR at each norm", "SQNR in dB: higher is closer"
        lowest = f"; the lowest is {min(finite):.1f} dB" if finite else ""
        pictures.append(_picture(sites, title, lowest, axis, linear(finite), [points], parting))
    means = [_distance(site.cosine_mean) for site in sites]
    worst = [_distance(site.cosine_worst) for site in sites]
    distances = [distance for distance in [*means, *worst] if distance is not None]
    if distances:
        series = [
            [
                Point(value, f"{site.name}: {number(value)} {words}", style)
                for site, value in zip(sites, values, strict=True)
            ]
            for values, words, style in (
                (means, "on average", "dot"),
                (worst, "at worst", "triangle"),
            )
        ]
        title, axis = (
            f"{tower}: 1 - cosine at each norm",
            "1 - cosine, logarithmic: lower is closer",
        )
        summary = f"; the largest is {max(distances):.2e}"
        legend = [("dot", "mean of the rows"), ("triangle", "worst row")]
        scale = logarithmic(distances)
        drawn = _picture(sites, title, summary, axis, scale, series, parting, legend=legend)
        pictures.append(drawn)
    return pictures


def _sqnr_words(site: SiteComparison) -> str:
    value = decibels(site.sqnr_db, site.max_abs_error)
    return f"{site.name}: {value}" if value == "equal" else f"{site.name}: {value} dB"


def _distance(cosine: float | None) -> float | None:
    return None if cosine is None else max(1 - cosine, _DEEPEST)


def _picture(
    sites: Sequence[SiteComparison],
    title: str,
    summary: str,
    axis: str,
    scale: Scale,
    series: Sequence[Sequence[Point]],
    parting: float | None,
    limit: tuple[float, str] | None = None,
    legend: Sequence[tuple[str, str]] = (),
) -> Picture:
    """A chart along the norms."""
    chart = (axis, scale, series, *named_places([site.name for site in sites]), limit, parting)
    description = f"{len(sites)} norms{summary}."
    return Picture(title, depth_drawing(title, description, *chart), _table(sites), legend)


def _parting(sites: Sequence[SiteComparison], bisection: Bisection | None) -> float | None:
    """The share of the depth at which the models part."""
    if bisection is None or bisection.site is None:
        return None
    indices = {site.name: index for index, site in enumerate(sites)}
    norms = ((bisection.norm, 0.5), (bisection.after_norm, 1.0), (bisection.before_norm, 0.0))
    for name, offset in norms:
        if name in indices:
            return (indices[name] + offset) / len(sites)
    return None


def _bisection(found: Bisection | None) -> list[str]:
    if found is None:
        return []
    if found.site is None:
        return [found.note or "No place was found at which the models part."]
    operator = f" ({found.operator})" if found.operator else ""
    sentences = f"The models part first at {found.site}{operator}"
    if found.error is not None:
        sentences += f": error {number(found.error)}, allowed {number(found.allowed)}"
    sentences += f", on the probe {found.probe}." if found.probe else "."
    if found.norm:
        sentences += f" It belongs to the norm {found.norm}."
    if found.last_equal:
        names = ", ".join(shortened(name, 80) for name in found.last_equal[:4])
        more = f" and {len(found.last_equal) - 4} more" if len(found.last_equal) > 4 else ""
        sentences += f" What it is computed from agrees: {names}{more}."
    data = f"The inputs that show it are in {found.reproducer} (for --data)."
    return [sentences, *filter(None, [found.note]), *([data] if found.reproducer else [])]


def _table(sites: Sequence[SiteComparison]) -> Table:
    judged = any(site.excess is not None for site in sites)
    rows = []
    for site in sites:
        kinds = [kind_name(kind) for kind in dict.fromkeys((site.kind, site.candidate_kind))]
        excess = {"error / allowed": times(site.excess), "probe": site.probe or "-"}
        rows.append(
            {
                "norm": site.name,
                "role": role_name(site.role),
                "kind": f" {TO} ".join(kinds),
                **closeness(site),
                **(excess if judged else {}),
                "compared at": "the norm's output" if site.at == "output" else site.at,
            }
        )
    numeric = ["SQNR dB", "cosine", "worst", "max error", "error / allowed"]
    failed = [site.passed is False for site in sites]
    return table_of("Every matched norm", rows, numeric, ["norm", "compared at"], failed)
