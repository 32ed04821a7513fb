"""What was found, in sentences that a colleague understands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from normswap.parity.report import ExactOutput, ValidationReport
from normswap.report.html.closeness import approximate_outputs, class_output, furthest_output
from normswap.report.html.compared_times import compared_times
from normswap.report.html.excess import largest_excess
from normswap.report.html.formats import (
    change,
    counted,
    kind_name,
    listed,
    number,
    percent,
    times,
)
from normswap.report.html.norm_rows import NormRow, norm_rows
from normswap.timing.bench_report import BenchReport, Ratio


@dataclass(frozen=True)
class Verdict:
    """``tone``: 'good', 'plain' (another function, measured) or 'bad'."""

    tone: str
    sign: str
    headline: str
    sentences: list[str]


_NOTHING = Verdict("bad", "\N{BALLOT X}", "Nothing was compared.", ["The models share no output."])


def verdict(report: ValidationReport, bench: BenchReport | None) -> Verdict:
    """Is it the same model, how far off is it, where does it start, and what was gained."""
    found = _exact(report) if report.contract == "exact" else _approximate(report)
    sentences = [*found.sentences, *_start(report), *_files(report), *_norms(report)]
    return Verdict(found.tone, found.sign, found.headline, [*sentences, *_time(report, bench)])


def _files(report: ValidationReport) -> list[str]:
    ours, theirs = report.reference.sha256, report.candidate.sha256
    same = ours is not None and ours == theirs
    return ["Both files are the same, byte for byte: nothing was changed."] if same else []


def _exact(report: ValidationReport) -> Verdict:
    worst = largest_excess(report)
    if report.passed and not report.outputs:
        return _NOTHING
    if report.passed:
        return Verdict("good", "\N{CHECK MARK}", "It is the same model.", [_agreement(report)])
    if worst is not None and worst.times > 1:
        told = (
            f"At output {worst.output} it is {times(worst.times)} times as far off as rounding "
            f"explains (probe: {worst.probe})."
        )
        return Verdict("bad", "\N{BALLOT X}", "It is not the same model.", [told])
    return Verdict("bad", "\N{BALLOT X}", "It is not shown to be the same model.", _reasons(report))


def _agreement(report: ValidationReport) -> str:
    compared = [output for output in report.outputs if isinstance(output, ExactOutput)]
    numbers = [errors for output in compared for errors in output.probes]
    if numbers and all(errors.max_candidate == errors.max_original == 0 for errors in numbers):
        return "No output differs from the original in float64 at all."
    worst = largest_excess(report)
    if worst is None:
        return "Every output is equal."
    return (
        "It differs from the original by no more than rounding does: the largest error is "
        f"{times(worst.times)} of what is allowed (output {worst.output}, probe: {worst.probe})."
    )


def _approximate(report: ValidationReport) -> Verdict:
    if not report.passed:
        headline = "The comparison failed."
        return Verdict("bad", "\N{BALLOT X}", headline, _reasons(report) + _closeness(report))
    outputs = approximate_outputs(report)
    if not outputs:
        return _NOTHING
    if all(output.max_abs_error == 0 for output in outputs):
        told = "Every output is equal on these inputs."
        return Verdict("good", "\N{CHECK MARK}", "No difference was found.", [told])
    headline = "This is how close it is to the original."
    return Verdict("plain", "\N{ALMOST EQUAL TO}", headline, _closeness(report))


def _reasons(report: ValidationReport) -> list[str]:
    fatal = [finding for finding in report.findings if finding.fatal]
    if not fatal:
        return []
    where = f" (at {fatal[0].output})" if fatal[0].output else ""
    more = f", and {counted(len(fatal) - 1, 'more finding')} of that weight" * (len(fatal) > 1)
    return [f"{fatal[0].message}{where}{more}."]


def _closeness(report: ValidationReport) -> list[str]:
    """Of the output that is furthest off, and of the classes."""
    outputs = approximate_outputs(report)
    worst = furthest_output(outputs)
    if worst is None or worst.sqnr_db is None:
        return ["No figure of how close it is could be computed."]
    told = [
        f"At output {worst.name} the error is {_noise(worst.sqnr_db)} of the signal (SQNR "
        f"{number(worst.sqnr_db, '.1f')} dB); the cosine is {number(worst.cosine_mean, '.4f')} on "
        f"average and {number(worst.cosine_worst, '.4f')} at worst."
    ]
    classes = class_output(outputs)
    if classes is not None and classes.accuracy_reference is not None:
        accuracy = change(classes.accuracy_reference, classes.accuracy_candidate)
        told.append(f"Accuracy: {accuracy} ({counted(classes.rows, 'sample')}).")
    elif classes is not None and classes.top1_agreement is not None:
        same = percent(classes.top1_agreement)
        told.append(f"Both choose the same class for {same} of the samples ({classes.name}).")
    found = report.retrieval
    if found is not None:
        shares = (found.overlap_at_k_image_to_text, found.overlap_at_k_text_to_image)
        told.append(
            f"Of the {found.k} nearest texts of an image {percent(shares[0])} stay, of the "
            f"{found.k} nearest images of a text {percent(shares[1])}."
        )
    return told


def _noise(sqnr: float) -> str:
    share = 10.0 ** min(-sqnr / 20, 300.0)
    return percent(share) if share >= 0.001 else number(share, ".1e")


def _start(report: ValidationReport) -> list[str]:
    found = report.bisection
    if found is not None and found.site is not None:
        told = f"The models part first at {found.site}"
        if found.after_norm or found.before_norm:
            places = [("after", found.after_norm), ("before", found.before_norm)]
            told += f", {listed(f'{word} {norm}' for word, norm in places if norm)}"
        return [f"{told}."]
    failed = next((site for site in report.sites if site.passed is False), None)
    if failed is not None:
        return [f"The first norm that is further off than allowed is {failed.name}."]
    return []


def _norms(report: ValidationReport) -> list[str]:
    """What became of the norms, in one sentence."""
    rows = [row for tower in norm_rows(report).values() for row in tower]
    if not rows:
        return []
    kept = sum(row.state == "kept" for row in rows)
    if kept == len(rows):
        return [f"The kinds of all {kept} norms are the same." if kept > 1 else "Its norm stays."]
    fates = Counter(_fate(row) for row in rows if row.state in ("swapped", "gone", "new"))
    told = [f"{count} {words}" for words, count in fates.items()]
    told += [f"{counted(kept, 'norm')} of the same kind"] if kept else []
    return [f"Its norms: {listed(told)}."] if told else []


def _fate(row: NormRow) -> str:
    if row.before is None:
        return f"new {kind_name(row.after_kind)}"
    before = kind_name(row.before.kind)
    if row.state == "gone":
        return f"{before} gone"
    return f"{kind_name(row.after_kind)} in place of {before}"


def _time(report: ValidationReport, bench: BenchReport | None) -> list[str]:
    return [
        f"{_speed(found.ratio)}, in {found.runtime}." for found in compared_times(report, bench)
    ]


def _speed(ratio: Ratio) -> str:
    interval = f"{ratio.median:.2f} of the time ({ratio.low:.2f} to {ratio.high:.2f})"
    if ratio.verdict == "no difference shown":
        return f"No difference in time was shown: {interval}"
    return f"It is {ratio.verdict}: {interval}"
