"""The sections on the errors at outputs: their distributions, and every figure of the exact
contract."""

from __future__ import annotations

import math
from itertools import pairwise

from markupsafe import Markup

from normswap.parity.report import (
    ExactOutput,
    Histogram,
    OutputErrors,
    ProbeErrors,
    ValidationReport,
)
from normswap.report.html.parts import Picture, Section, Table, number, percent, table_of, times
from normswap.report.html.svg import Scale, label, line, picture, power_of_ten, share, tag

_TOP, _PLOT, _BOTTOM = 24, 130, 40  # pixels
_ZERO = 0.1  # of the width: the column of errors of zero and the space beside it
_MOST_TICKS = 6


# -- distributions -------------------------------------------------------------------------------


def errors_section(report: ValidationReport) -> Section:
    title = "Distributions of the errors"
    if not report.errors:
        return Section("errors", title, ["No errors were counted at any output."])
    text = {
        "exact": "Against the reference in float64: the reference's own rounding errors as it "
        "runs, and the candidate's. Where both lie alike, the candidate only rounds differently.",
        "approximate": "Of the candidate against the reference as it runs.",
    }
    pictures = [_picture(errors) for errors in report.errors]
    return Section("errors", title, [text[report.contract]], pictures=pictures)


def _picture(errors: OutputErrors) -> Picture:
    title = f"Errors at {errors.name}"
    description = f"The candidate: {_summary(errors.candidate)}."
    legend = [("candidate", "candidate")]
    if errors.original is not None:
        description += f" The original: {_summary(errors.original)}."
        legend.append(("original", "original, its own rounding"))
    return Picture(title, _drawing(title, description, errors), _table(errors), legend)


def _summary(histogram: Histogram) -> str:
    """The most frequent errors, in words."""
    total = sum(histogram.counts) + histogram.zeros
    if total == 0:
        return "no elements"
    zeros = f"{percent(histogram.zeros / total)} have no error"
    if not any(histogram.counts):
        return zeros
    peak = max(range(len(histogram.counts)), key=lambda index: histogram.counts[index])
    low, high = histogram.exponents[peak : peak + 2]
    return f"most errors are between {10**low:.0e} and {10**high:.0e} of the output; {zeros}"


def _table(errors: OutputErrors) -> Table:
    columns = {"candidate": _counts(errors.candidate)}
    if errors.original is not None:
        columns["original"] = _counts(errors.original)
    places = list(dict.fromkeys(place for counts in columns.values() for place in counts))
    rows = [
        [place, *(f"{counts.get(place, 0):,}" for counts in columns.values())] for place in places
    ]
    head = ["error / largest value", *columns]
    return Table("Elements by the size of their error", head, rows, numeric=list(columns))


def _counts(histogram: Histogram) -> dict[str, int]:
    """By the bin, empty ones left out."""
    counts = {"none": histogram.zeros}
    for (low, high), count in zip(pairwise(histogram.exponents), histogram.counts, strict=False):
        if count:
            counts[f"1e{low:g} to 1e{high:g}"] = count
    return counts


def _drawing(title: str, description: str, errors: OutputErrors) -> Markup:
    """The share of elements by the size of their error: the candidate's filled, the original's as
    an outline; errors of zero in a column of their own on the left."""
    held = {"candidate": errors.candidate}
    if errors.original is not None:
        held["original"] = errors.original
    edges = [edge for histogram in held.values() for edge in histogram.exponents]
    # Of the powers of ten, which lie evenly.
    scale = Scale(min(edges, default=0.0), max(edges, default=1.0))
    highest = max((max(_shares(histogram)) for histogram in held.values()), default=0.0) or 1.0
    parts = [label("share of the elements", -52, 10, "axis")]
    for value in (0.0, highest / 2, highest):
        y = _TOP + _PLOT * (1 - value / highest)
        # There is no room for the decimals of 100 %.
        words = percent(value) if value < 1 else "100\N{NO-BREAK SPACE}%"
        parts += [line("0", "100%", y, y, "grid"), label(words, -8, y + 4, "tick left")]
    for style, histogram in held.items():
        parts += _columns(histogram, scale, highest, style)
    return picture(
        title, description, _TOP + _PLOT + _BOTTOM, "histogram", *parts, *_axis_below(scale)
    )


def _shares(histogram: Histogram) -> list[float]:
    total = (sum(histogram.counts) + histogram.zeros) or 1
    return [count / total for count in (histogram.zeros, *histogram.counts)]


def _columns(histogram: Histogram, scale: Scale, highest: float, style: str) -> list[Markup]:
    ends = [_at(scale, edge) for edge in histogram.exponents]
    bins = [f"10^{low:g} to 10^{high:g}" for low, high in pairwise(histogram.exponents)]
    places = [(0.0, _ZERO * 0.7, "no error"), *zip(ends, ends[1:], bins, strict=False)]
    columns = []
    for (left, right, where), part in zip(places, _shares(histogram), strict=False):
        if part > 0:
            height = max(_PLOT * part / highest, 1.0)
            column = tag(
                "rect",
                tag("title", f"{style}: {percent(part)} of the elements, {where}"),
                x=share(left),
                width=share(max(right - left, 0.0)),
                y=f"{_TOP + _PLOT - height:.2f}",
                height=f"{height:.2f}",
                class_=f"column {style}",
            )
            columns.append(column)
    return columns


def _axis_below(scale: Scale) -> list[Markup]:
    y = _TOP + _PLOT + 16
    low, high = math.ceil(scale.low), math.floor(scale.high)
    step = max(1, -(-(high - low) // _MOST_TICKS))
    parts = [label("0", share(_ZERO * 0.35), y, "tick")]
    for power in range(high, low, -step):  # the lowest has no room beside the zero
        parts.append(label(power_of_ten(power), share(_at(scale, power)), y, "tick"))
    return [*parts, label("error / largest value of the output", "100%", y + 18, "axis end")]


def _at(scale: Scale, power: float) -> float:
    return _ZERO + (1 - _ZERO) * scale.at(power)


# -- the exact contract --------------------------------------------------------------------------


def details_section(report: ValidationReport) -> Section:
    """Every figure of the exact contract."""
    title = "Every output and probe"
    outputs = [output for output in report.outputs if isinstance(output, ExactOutput)]
    if not outputs:
        return Section("details", title, ["No output was compared."])
    text = [
        "Errors against the reference in float64, in the units of the output. Allowed: twice the "
        "original's own error and one rounding step of the output, for the largest error and for "
        "the root mean square (rms)."
    ]
    text += [
        f"{output.name} ({output.dtype}) was compared for equality, or could not be compared."
        for output in outputs
        if not output.probes
    ]
    tables = [_details(output) for output in outputs if output.probes]
    return Section("details", title, text, tables=tables)


def excess(errors: ProbeErrors) -> float:
    """The larger of the largest and the root-mean-square error, over its bound; passed up to 1."""
    return max(
        _over(errors.max_candidate, errors.max_bound), _over(errors.rms_candidate, errors.rms_bound)
    )


def largest_excess(report: ValidationReport) -> tuple[float, str, str] | None:
    """(excess, output, probe); None where no output was compared in numbers."""
    found = [
        (excess(errors), output.name, errors.probe)
        for output in report.outputs
        if isinstance(output, ExactOutput)
        for errors in output.probes
    ]
    return max(found, key=lambda item: item[0], default=None)


def _over(error: float, bound: float) -> float:
    if math.isnan(error) or math.isnan(bound):
        return math.inf
    if bound == 0:
        return math.inf if error > 0 else 0.0
    return error / bound


def _details(output: ExactOutput) -> Table:
    names = dict.fromkeys([output.name, output.candidate_name])
    rows = [
        {
            "probe": errors.probe,
            "elements": f"{errors.elements:,}",
            "largest value": number(errors.scale),
            "error": number(errors.max_candidate),
            "original's": number(errors.max_original),
            "allowed": number(errors.max_bound),
            "rms error": number(errors.rms_candidate),
            "original's rms": number(errors.rms_original),
            "allowed rms": number(errors.rms_bound),
            "error / allowed": times(excess(errors)),
            "": "ok" if errors.passed else "FAILED",
        }
        for errors in output.probes
    ]
    failed = [not errors.passed for errors in output.probes]
    caption = f"{' / '.join(names)}, {output.dtype}"
    return table_of(caption, rows, list(rows[0])[1:-1], failed=failed)
