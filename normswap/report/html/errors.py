"""The section on how large errors are."""

from __future__ import annotations

from itertools import pairwise

from normswap.parity.report import Histogram, OutputErrors, ValidationReport
from normswap.report.html.formats import percent
from normswap.report.html.parts import Picture, Section, Table
from normswap.report.html.svg_histogram import histogram_drawing

_TITLE = "Distributions of the errors"


def errors_section(report: ValidationReport) -> Section:
    if not report.errors:
        why = "No errors were counted at any output."
        return Section("errors", _TITLE, [why])
    text = {
        "exact": "Against the reference in float64: the reference's own rounding errors as it "
        "runs, and the candidate's. Where both lie alike, the candidate only rounds differently.",
        "approximate": "Of the candidate against the reference as it runs.",
    }
    pictures = [_picture(errors) for errors in report.errors]
    return Section("errors", _TITLE, [text[report.contract]], pictures=pictures)


def _picture(errors: OutputErrors) -> Picture:
    title = f"Errors at {errors.name}"
    told = f"The candidate: {_told(errors.candidate)}."
    legend = [("candidate", "candidate")]
    if errors.original is not None:
        told += f" The original: {_told(errors.original)}."
        legend.append(("original", "original, its own rounding"))
    return Picture(title, histogram_drawing(title, told, errors), _table(errors), legend)


def _told(histogram: Histogram) -> str:
    """Most errors, in words."""
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
    """By the bin; bins that hold nothing are left out."""
    counts = {"none": histogram.zeros}
    for (low, high), count in zip(pairwise(histogram.exponents), histogram.counts, strict=False):
        if count:
            counts[f"1e{low:g} to 1e{high:g}"] = count
    return counts
