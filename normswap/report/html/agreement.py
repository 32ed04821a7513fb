"""The section on accuracy and agreement."""

from __future__ import annotations

from collections.abc import Sequence

from normswap.parity.report import ApproximateOutput, Retrieval, ValidationReport
from normswap.report.html.parts import (
    TO,
    Picture,
    Section,
    Table,
    change,
    closeness,
    number,
    percent,
    table_of,
)
from normswap.report.html.svg import Bar, bars_drawing

_TITLE = "Accuracy and agreement"
_Groups = list[tuple[str, list[Bar]]]


def agreement_section(report: ValidationReport) -> Section:
    """Of the approximate contract."""
    outputs = approximate_outputs(report)
    if not outputs:
        return Section("agreement", _TITLE, ["No output was compared."])
    classes = class_output(outputs)
    text = []
    if all(output.accuracy_reference is None for output in outputs):
        text.append("There is no accuracy: the data has no labels that fit an output.")
    if report.answers is not None and report.answers.zero_shot:
        text.append(
            "The labels say which texts fit an image: those of its class. A class is the mean of "
            "its texts, and an image gets the nearest (zero-shot). No text belongs to one image "
            "alone, so there is no retrieval."
        )
    elif report.retrieval is None and any(output.top1_agreement is None for output in outputs):
        text.append(
            "First classes are compared at outputs with a row of classes per sample; retrieval at "
            "the two embeddings of a CLIP."
        )
    # The largest element of an embedding means nothing, so it is only in the table.
    drawn = [output for output in outputs if output.kl_mean is not None or output is classes]
    word = accuracy_word(report)
    shares = [
        (f"{word.capitalize()} and agreement at {output.name}", _shares(output, word))
        for output in drawn
    ]
    tables = [_table(outputs)]
    if (pairs := report.retrieval) is not None:
        shares.append((f"Retrieval among {pairs.pairs} images and texts", _kept(pairs)))
        tables.append(_retrieval_table(pairs))
    pictures = [_picture(title, groups) for title, groups in shares if groups]
    return Section("agreement", _TITLE, text, pictures=pictures, tables=tables)


def approximate_outputs(report: ValidationReport) -> list[ApproximateOutput]:
    return [output for output in report.outputs if isinstance(output, ApproximateOutput)]


def class_output(outputs: Sequence[ApproximateOutput]) -> ApproximateOutput | None:
    """The output that was scored, else the first whose rows are classes: an embedding has a largest
    element too, but it means nothing."""
    scored = [output for output in outputs if output.accuracy_reference is not None]
    classes = [output for output in outputs if output.kl_mean is not None]
    return next(iter(scored + classes), None)


def accuracy_word(report: ValidationReport) -> str:
    zero_shot = report.answers is not None and report.answers.zero_shot
    return "zero-shot accuracy" if zero_shot else "accuracy"


def _shares(output: ApproximateOutput, word: str) -> _Groups:
    groups = []
    if output.accuracy_reference is not None and output.accuracy_candidate is not None:
        accuracies = {
            "reference": output.accuracy_reference,
            "candidate": output.accuracy_candidate,
        }
        groups.append((word, _bars(accuracies)))
    shares = {
        "same class (top-1)": output.top1_agreement,
        "same five classes (top-5)": output.top5_agreement,
    }
    known = {head: share for head, share in shares.items() if share is not None}
    return groups + [(head, _bars({"candidate": share})) for head, share in known.items()]


def _kept(pairs: Retrieval) -> _Groups:
    nearest = f"kept of the {pairs.k} nearest"
    groups = [
        (f"{nearest}, image to text", _bars({"candidate": pairs.overlap_at_k_image_to_text})),
        (f"{nearest}, text to image", _bars({"candidate": pairs.overlap_at_k_text_to_image})),
    ]
    if pairs.recall_at_1_reference and pairs.recall_at_1_candidate:
        heads = ("R@1, image to text", "R@1, text to image")
        recalls = zip(heads, pairs.recall_at_1_reference, pairs.recall_at_1_candidate, strict=True)
        groups += [(head, _bars({"reference": a, "candidate": b})) for head, a, b in recalls]
    return groups


def _bars(shares: dict[str, float]) -> list[Bar]:
    return [Bar(share, percent(share), style) for style, share in shares.items()]


def _picture(title: str, groups: _Groups) -> Picture:
    words = [f"{head}: {', '.join(bar.words for bar in bars)}" for head, bars in groups]
    styles = {bar.style for _, bars in groups for bar in bars}
    legend = [(style, style) for style in ("reference", "candidate")] if len(styles) > 1 else []
    rows = [[head, bar.style, bar.words] for head, bars in groups for bar in bars]
    data = Table("The bars", ["figure", "model", "value"], rows, numeric=["value"])
    return Picture(title, bars_drawing(title, ". ".join(words), groups, 1.0), data, legend)


def _table(outputs: Sequence[ApproximateOutput]) -> Table:
    rows = [
        {
            "output": output.name,
            "rows": str(output.rows),
            **closeness(output),
            "top-1": percent(output.top1_agreement),
            "top-5": percent(output.top5_agreement),
            "KL": number(output.kl_mean),
            "accuracy": change(output.accuracy_reference, output.accuracy_candidate),
        }
        for output in outputs
    ]
    return table_of("Every output", rows, list(rows[0])[1:], ["output"])


def _retrieval_table(pairs: Retrieval) -> Table:
    sides = [
        (f"{pairs.images} to {pairs.texts}", pairs.overlap_at_k_image_to_text),
        (f"{pairs.texts} to {pairs.images}", pairs.overlap_at_k_text_to_image),
    ]
    rows = []
    for side, (way, overlap) in enumerate(sides):
        recalls = pairs.recall_at_1_reference, pairs.recall_at_1_candidate
        ranks = pairs.mean_rank_reference, pairs.mean_rank_candidate
        before, after = (number(both and both[side], ".2f") for both in ranks)
        rows.append(
            {
                "direction": way,
                f"overlap@{pairs.k}": percent(overlap),
                "R@1": change(*(both and both[side] for both in recalls)),
                "mean rank": "-" if ranks[0] is None else f"{before} {TO} {after}",
            }
        )
    caption = f"Retrieval, {pairs.pairs} pairs"
    return table_of(caption, rows, list(rows[0])[1:], ["direction"])
