"""The section on accuracy and agreement."""

from __future__ import annotations

from collections.abc import Sequence

from normswap.parity.report import ApproximateOutput, Retrieval, ValidationReport
from normswap.report.html.closeness import approximate_outputs, class_output
from normswap.report.html.formats import TO, change, decibels, number, percent
from normswap.report.html.parts import Picture, Section, Table
from normswap.report.html.svg_bars import Bar, bars_drawing

_TITLE = "Accuracy and agreement"


def agreement_section(report: ValidationReport) -> Section:
    """Of the approximate contract."""
    outputs = approximate_outputs(report)
    if not outputs:
        return Section("agreement", _TITLE, ["No output was compared."])
    classes = class_output(outputs)
    text = []
    if all(output.accuracy_reference is None for output in outputs):
        text.append("There is no accuracy: the data has no labels that fit an output.")
    if report.retrieval is None and any(output.top1_agreement is None for output in outputs):
        text.append(
            "First classes are compared at outputs with a row of classes per sample; retrieval at "
            "the two embeddings of a CLIP."
        )
    # The largest element of an embedding says nothing; it stays in the table.
    drawn = [output for output in outputs if output.kl_mean is not None or output is classes]
    pictures = [_output_picture(output) for output in drawn if _groups(output)]
    tables = [_table(outputs)]
    if report.retrieval is not None:
        pictures.append(_retrieval_picture(report.retrieval))
        tables.append(_retrieval_table(report.retrieval))
    return Section("agreement", _TITLE, text, pictures=pictures, tables=tables)


def _groups(output: ApproximateOutput) -> list[tuple[str, list[Bar]]]:
    groups = []
    if output.accuracy_reference is not None and output.accuracy_candidate is not None:
        bars = _both(output.accuracy_reference, output.accuracy_candidate)
        groups.append(("accuracy", bars))
    shares = [
        ("same first class (top-1)", output.top1_agreement),
        ("same five classes (top-5)", output.top5_agreement),
    ]
    groups += [(head, [_bar(share, "candidate")]) for head, share in shares if share is not None]
    return groups


def _output_picture(output: ApproximateOutput) -> Picture:
    return _picture(f"Accuracy and agreement at {output.name}", _groups(output))


def _retrieval_picture(found: Retrieval) -> Picture:
    k = found.k
    groups = [
        (f"kept of the {k} nearest, image to text", found.overlap_at_k_image_to_text),
        (f"kept of the {k} nearest, text to image", found.overlap_at_k_text_to_image),
    ]
    drawn = [(head, [_bar(share, "candidate")]) for head, share in groups]
    if found.recall_at_1_reference and found.recall_at_1_candidate:
        pairs = zip(found.recall_at_1_reference, found.recall_at_1_candidate, strict=True)
        heads = ("R@1, image to text", "R@1, text to image")
        drawn += [(head, _both(*pair)) for head, pair in zip(heads, pairs, strict=True)]
    return _picture(f"Retrieval among {found.pairs} images and texts", drawn)


def _picture(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Picture:
    told = ". ".join(f"{head}: {', '.join(bar.words for bar in bars)}" for head, bars in groups)
    styles = {bar.style for _, bars in groups for bar in bars}
    legend = [(style, style) for style in ("reference", "candidate")] if len(styles) > 1 else []
    return Picture(title, bars_drawing(title, told, groups, 1.0), _data(groups), legend)


def _both(reference: float, candidate: float) -> list[Bar]:
    return [_bar(reference, "reference"), _bar(candidate, "candidate")]


def _bar(share: float, style: str) -> Bar:
    return Bar(share, percent(share), style)


def _data(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Table:
    rows = [[head, bar.style, bar.words] for head, bars in groups for bar in bars]
    return Table("The bars", ["figure", "model", "value"], rows, numeric=["value"])


def _table(outputs: Sequence[ApproximateOutput]) -> Table:
    numeric = [
        "rows",
        "SQNR dB",
        "cosine",
        "worst",
        "max error",
        "top-1",
        "top-5",
        "KL",
        "accuracy",
    ]
    rows = [
        [
            output.name,
            str(output.rows),
            decibels(output.sqnr_db, output.max_abs_error),
            number(output.cosine_mean, ".4f"),
            number(output.cosine_worst, ".4f"),
            number(output.max_abs_error),
            percent(output.top1_agreement),
            percent(output.top5_agreement),
            number(output.kl_mean),
            change(output.accuracy_reference, output.accuracy_candidate),
        ]
        for output in outputs
    ]
    return Table("Every output", ["output", *numeric], rows, numeric, ["output"])


def _retrieval_table(found: Retrieval) -> Table:
    rows = []
    for side, (way, overlap) in enumerate(
        [
            (f"{found.images} to {found.texts}", found.overlap_at_k_image_to_text),
            (f"{found.texts} to {found.images}", found.overlap_at_k_text_to_image),
        ]
    ):
        recalls = [
            _side(found.recall_at_1_reference, side),
            _side(found.recall_at_1_candidate, side),
        ]
        ranks = [_side(found.mean_rank_reference, side), _side(found.mean_rank_candidate, side)]
        rank = (
            "-" if ranks[0] is None else f"{number(ranks[0], '.2f')} {TO} {number(ranks[1], '.2f')}"
        )
        rows.append([way, percent(overlap), change(*recalls), rank])
    numeric = [f"overlap@{found.k}", "R@1", "mean rank"]
    caption = f"Retrieval, {found.pairs} pairs"
    return Table(caption, ["direction", *numeric], rows, numeric, ["direction"])


def _side(pair: tuple[float, float] | None, side: int) -> float | None:
    return None if pair is None else pair[side]
