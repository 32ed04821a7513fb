"""The section on single samples: what both models answer, with a picture of each."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from normswap.parity.report import Answers, Fate, SampleAnswer
from normswap.report.html.parts import (
    Section,
    Table,
    Tile,
    TileAnswer,
    Tiles,
    counted,
    listed,
    table_of,
)

_PNG = b"\x89PNG"
_TONES = {
    Fate.LOST: "bad",
    Fate.WON: "good",
    Fate.WRONG: "warn",
    Fate.RIGHT: "plain",
    Fate.DIFFERENT: "warn",
    Fate.SAME: "plain",
}
_HEADS = {
    Fate.LOST: "Only the reference is right",
    Fate.WON: "Only the candidate is right",
    Fate.WRONG: "Both are wrong",
    Fate.RIGHT: "Both are right",
    Fate.DIFFERENT: "They differ",
    Fate.SAME: "They agree",
}


def answers_section(answers: Answers) -> Section:
    where = (
        "Each image gets the class of the texts that are nearest (zero-shot)"
        if answers.zero_shot
        else f"The class of a sample is the largest score of {answers.output}"
    )
    shares = [f"{words} for {count:,}" for words, count in answers.counts.items()]
    total = sum(answers.counts.values())
    shown = len(answers.samples)
    text = [f"{where}. Of {counted(total, 'sample')}: {listed(shares)}."]
    rest = "those on which the models part, or are wrong, first" if shown < total else "all"
    title = f"{shown} of {counted(total, 'sample')}, {rest}"
    if all(sample.image is None for sample in answers.samples):
        tables = [_table(title, answers.samples)] if answers.samples else []
        return Section("answers", "What both answer", text, tables=tables)
    drawn = "Images are drawn as the models see them, each with its place in the data."
    return Section("answers", "What both answer", [*text, drawn], samples=_groups(answers.samples))


def _groups(samples: Sequence[SampleAnswer]) -> list[Tiles]:
    fates = dict.fromkeys(sample.fate for sample in samples)
    return [
        Tiles(_HEADS[fate], _TONES[fate], [_tile(s) for s in samples if s.fate == fate])
        for fate in fates
    ]


def _tile(sample: SampleAnswer) -> Tile:
    pairs = (("reference", sample.reference), ("candidate", sample.candidate))
    answers = [
        TileAnswer(model, str(value), None if sample.label is None else value == sample.label)
        for model, value in pairs
    ]
    words = ", ".join(f"{answer.model} {answer.value}" for answer in answers)
    name, label = f"sample {sample.row}", "" if sample.label is None else f"{sample.label}"
    known = f", label {label}" if label else ""
    return Tile(name, label, answers, _data_uri(sample.image or b""), f"{name}{known}: {words}")


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _table(title: str, samples: Sequence[SampleAnswer]) -> Table:
    rows = [
        {
            "sample": str(sample.row),
            "label": "-" if sample.label is None else str(sample.label),
            "reference": str(sample.reference),
            "candidate": str(sample.candidate),
            "": sample.fate.value,
        }
        for sample in samples
    ]
    return table_of(title, rows, ["sample", "label", "reference", "candidate"])
