"""The top of the page: the verdict in sentences, the key figures, and the findings."""

from __future__ import annotations

from collections import Counter

from normswap.parity.report import ApproximateOutput, ExactOutput, ValidationReport
from normswap.report.html.agreement import accuracy_word, approximate_outputs, class_output
from normswap.report.html.cost import time_ratios
from normswap.report.html.norms import NormRow, norm_rows
from normswap.report.html.output_errors import largest_excess
from normswap.report.html.parts import (
    TO,
    KeyFigure,
    Note,
    Section,
    Verdict,
    change,
    counted,
    file_size,
    kind_name,
    kinds_present,
    listed,
    number,
    percent,
    times,
)
from normswap.timing.bench_report import BenchReport, Ratio

_GOOD, _BAD = ("good", "\N{CHECK MARK}"), ("bad", "\N{BALLOT X}")


# -- the verdict ---------------------------------------------------------------------------------


def verdict(report: ValidationReport, bench: BenchReport | None) -> Verdict:
    """Is it the same model, how far off is it, where does it start, and what was gained."""
    judge = _exact_verdict if report.contract == "exact" else _approximate_verdict
    (tone, sign), headline, sentences = judge(report)
    sentences += [*_certificate(report), *_start(report), *_files(report), *_norms(report)]
    ratios = time_ratios(report, bench)
    sentences += [f"{_speed(ratio)}, in {runtime}." for runtime, ratio in ratios]
    return Verdict(tone, sign, headline, sentences)


def _certificate(report: ValidationReport) -> list[str]:
    if report.certificate is None:
        return []
    words = report.certificate.words
    return [f"{words[0].upper()}{words[1:]}."]


_Judgement = tuple[tuple[str, str], str, list[str]]  # tone and sign, headline, sentences


def _exact_verdict(report: ValidationReport) -> _Judgement:
    if report.passed and not report.outputs:
        return _BAD, "Nothing was compared.", ["The models share no output."]
    if report.passed:
        return _GOOD, "It is the same model.", [_agreement(report)]
    worst = largest_excess(report)
    if worst is not None and worst[0] > 1:
        multiple, output, probe = worst
        why = (
            f"At output {output} it is {times(multiple)} times as far off as rounding "
            f"explains (probe: {probe})."
        )
        return _BAD, "It is not the same model.", [why]
    return _BAD, "It is not shown to be the same model.", _reasons(report)


def _agreement(report: ValidationReport) -> str:
    compared = [output for output in report.outputs if isinstance(output, ExactOutput)]
    numbers = [errors for output in compared for errors in output.probes]
    if numbers and all(errors.max_candidate == errors.max_original == 0 for errors in numbers):
        return "No output differs from the original in float64 at all."
    worst = largest_excess(report)
    if worst is None:
        return "Every output is equal."
    multiple, output, probe = worst
    return (
        "It differs from the original by no more than rounding does: the largest error is "
        f"{times(multiple)} of what is allowed (output {output}, probe: {probe})."
    )


def _approximate_verdict(report: ValidationReport) -> _Judgement:
    outputs = approximate_outputs(report)
    if not report.passed:
        return _BAD, "The comparison failed.", _reasons(report) + _closeness(report)
    if not outputs:
        return _BAD, "Nothing was compared.", ["The models share no output."]
    if all(output.max_abs_error == 0 for output in outputs):
        return _GOOD, "No difference was found.", ["Every output is equal on these inputs."]
    tone = ("plain", "\N{ALMOST EQUAL TO}")
    return tone, "This is how close it is to the original.", _closeness(report)


def _reasons(report: ValidationReport) -> list[str]:
    fatal = [finding for finding in report.findings if finding.fatal]
    if not fatal:
        return []
    where = f" (at {fatal[0].output})" if fatal[0].output else ""
    more = f", and {counted(len(fatal) - 1, 'more finding')} of that weight" * (len(fatal) > 1)
    return [f"{fatal[0].message}{where}{more}."]


def _closeness(report: ValidationReport) -> list[str]:
    """Of the output that is furthest off, and of the classes."""
    worst, classes = _furthest_output(report), class_output(approximate_outputs(report))
    if worst is None or worst.sqnr_db is None:
        return ["No figure of how close it is could be computed."]
    sentences = []
    if classes is not None and classes.accuracy_reference is not None:
        accuracy = change(classes.accuracy_reference, classes.accuracy_candidate)
        word = accuracy_word(report).capitalize()
        sentences.append(f"{word}: {accuracy} ({counted(classes.rows, 'sample')}).")
    elif classes is not None and classes.top1_agreement is not None:
        same = percent(classes.top1_agreement)
        sentences.append(f"Both choose the same class for {same} of the samples ({classes.name}).")
    noise = 10.0 ** min(-worst.sqnr_db / 20, 300.0)
    sentences.append(
        f"At output {worst.name} the error is "
        f"{percent(noise) if noise >= 0.001 else number(noise, '.1e')} of the signal (SQNR "
        f"{number(worst.sqnr_db, '.1f')} dB); the cosine is {number(worst.cosine_mean, '.4f')} on "
        f"average and {number(worst.cosine_worst, '.4f')} at worst."
    )
    if (pairs := report.retrieval) is not None:
        sentences.append(
            f"Of the {pairs.k} nearest texts of an image "
            f"{percent(pairs.overlap_at_k_image_to_text)} stay, of the {pairs.k} nearest images of "
            f"a text {percent(pairs.overlap_at_k_text_to_image)}."
        )
    return sentences


def _furthest_output(report: ValidationReport) -> ApproximateOutput | None:
    """The one of the lowest SQNR; None where none has one: all are equal, or not finite."""
    known = [output for output in approximate_outputs(report) if output.sqnr_db is not None]
    return min(known, key=lambda output: output.sqnr_db or 0.0, default=None)


def _start(report: ValidationReport) -> list[str]:
    bisection = report.bisection
    if bisection is not None and bisection.site is not None:
        places = [("after", bisection.after_norm), ("before", bisection.before_norm)]
        words = [f"{word} {norm}" for word, norm in places if norm]
        where = f", {listed(words)}" if words else ""
        return [f"The models part first at {bisection.site}{where}."]
    failed = next((site for site in report.sites if site.passed is False), None)
    if failed is not None:
        return [f"The first norm that is further off than allowed is {failed.name}."]
    return []


def _files(report: ValidationReport) -> list[str]:
    ours, theirs = report.reference.sha256, report.candidate.sha256
    same = ours is not None and ours == theirs
    return ["Both files are the same, byte for byte: nothing was changed."] if same else []


def _norms(report: ValidationReport) -> list[str]:
    """What became of the norms, in one sentence."""
    rows = [row for tower in norm_rows(report).values() for row in tower]
    if not rows:
        return []
    kept = sum(row.state == "kept" for row in rows)
    if kept == len(rows):
        return [f"The kinds of all {kept} norms are the same." if kept > 1 else "Its norm stays."]
    fates = Counter(_fate(row) for row in rows if row.state in ("swapped", "gone", "new"))
    parts = [f"{count} {words}" for words, count in fates.items()]
    parts += [f"{counted(kept, 'norm')} of the same kind"] if kept else []
    return [f"Its norms: {listed(parts)}."] if parts else []


def _fate(row: NormRow) -> str:
    if row.before is None:
        return f"new {kind_name(row.after_kind)}"
    before = kind_name(row.before.kind)
    if row.state == "gone":
        return f"{before} gone"
    return f"{kind_name(row.after_kind)} in place of {before}"


def _speed(ratio: Ratio) -> str:
    interval = f"{ratio.median:.2f} of the time ({ratio.low:.2f} to {ratio.high:.2f})"
    if ratio.verdict == "no difference shown":
        return f"No difference in time was shown: {interval}"
    return f"It is {ratio.verdict}: {interval}"


# -- key figures and findings --------------------------------------------------------------------


def key_figures(report: ValidationReport, bench: BenchReport | None) -> list[KeyFigure]:
    """Those that are known."""
    figures = _exact_figures(report) if report.contract == "exact" else _close_figures(report)
    ours, theirs = report.reference, report.candidate
    if ours.norms or theirs.norms:
        detail = f"{kinds_present(ours)} {TO} {kinds_present(theirs)}"
        figures.append(KeyFigure(f"{len(ours.norms)} {TO} {len(theirs.norms)}", "norms", detail))
    for runtime, ratio in time_ratios(report, bench):
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}: {ratio.verdict}"
        figures.append(KeyFigure(f"{ratio.median:.2f}", f"of the time in {runtime}", interval))
    if ours.size_bytes is not None and theirs.size_bytes is not None:
        sizes = f"{file_size(ours.size_bytes)} {TO} {file_size(theirs.size_bytes)}"
        figures.append(KeyFigure(sizes, "size of the files"))
    return figures


def _exact_figures(report: ValidationReport) -> list[KeyFigure]:
    worst = largest_excess(report)
    outputs = [output for output in report.outputs if isinstance(output, ExactOutput)]
    probes = {errors.probe for output in outputs for errors in output.probes}
    figures = []
    if worst is not None:
        multiple, output, probe = worst
        where = f"{output}, {probe}; up to 1 is rounding"
        figures.append(KeyFigure(times(multiple), "largest error / allowed", where))
    detail = f"on {counted(len(probes), 'probe')}" if probes else ""
    figures.append(KeyFigure(str(len(outputs)), "outputs compared", detail))
    judged = [site for site in report.sites if site.passed is not None]
    if judged:
        passed = sum(bool(site.passed) for site in judged)
        figures.append(KeyFigure(f"{passed} of {len(judged)}", "norms within what is allowed"))
    return figures


def _close_figures(report: ValidationReport) -> list[KeyFigure]:
    figures = []
    worst, classes = _furthest_output(report), class_output(approximate_outputs(report))
    if classes is not None and classes.accuracy_reference is not None:
        shares = change(classes.accuracy_reference, classes.accuracy_candidate)
        figures.append(KeyFigure(shares, accuracy_word(report), counted(classes.rows, "sample")))
    if classes is not None and classes.top1_agreement is not None:
        agreement = percent(classes.top1_agreement)
        where = "" if report.answers and report.answers.zero_shot else classes.name
        figures.append(KeyFigure(agreement, "same class", where))
    if worst is not None:
        cosines = [number(value, ".4f") for value in (worst.cosine_mean, worst.cosine_worst)]
        detail = f"cosine {cosines[0]}, worst {cosines[1]}"
        lowest = f"lowest SQNR, at {worst.name}"
        figures.append(KeyFigure(f"{number(worst.sqnr_db, '.1f')} dB", lowest, detail))
    pairs = report.retrieval
    if pairs is not None and pairs.recall_at_1_reference and pairs.recall_at_1_candidate:
        shares = change(pairs.recall_at_1_reference[0], pairs.recall_at_1_candidate[0])
        figures.append(KeyFigure(shares, "R@1, image to text", f"{pairs.pairs} pairs"))
    return figures


def findings_section(report: ValidationReport) -> Section:
    """Everything that a reader must know, fatal findings first."""
    notes = []
    for finding in sorted(report.findings, key=lambda finding: not finding.fatal):
        where = " at ".join(part for part in (finding.probe, finding.output) if part)
        tone, word = ("bad", "failed") if finding.fatal else ("warn", "note")
        kind = finding.kind.replace("_", " ")
        notes.append(Note(tone, f"{word}: {kind}", finding.message, where))
    text = [] if notes else ["There are none: nothing failed, and nothing needs a warning."]
    return Section("findings", "Findings", text, notes=notes)
