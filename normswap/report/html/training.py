"""The section on how a model was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normswap.parity.report import ApproximateOutput, ValidationReport
from normswap.report.html.formats import TO, decibels, number, percent
from normswap.report.html.parts import Picture, Section, Table
from normswap.report.html.scales import logarithmic
from normswap.report.html.svg_depth import Depth, Point, depth_drawing

_POINTS = 60  # of a curve; more cannot be told apart


@dataclass(frozen=True)
class Training:
    """``losses``: one for each step. ``before``: the model against the reference before it was
    trained, under the approximate contract. ``facts``: what else is to be told, by name."""

    losses: Sequence[float]
    before: ValidationReport | None
    facts: dict[str, str]


def training_section(training: Training, report: ValidationReport) -> Section:
    """``report``: of the trained model."""
    first, last = training.losses[0], training.losses[-1]
    text = [f"{len(training.losses):,} steps; the loss went from {first:.4g} to {last:.4g}."]
    facts = [[name, value] for name, value in training.facts.items()]
    tables = [Table("How it was trained", ["", "value"], facts)]
    if training.before is not None:
        tables.insert(0, _outputs(training.before, report))
    pictures = [_curve(training.losses)]
    return Section("training", "Training", text, pictures=pictures, tables=tables, wide=True)


def _curve(losses: Sequence[float]) -> Picture:
    parts = np.array_split(np.asarray(losses, np.float64), min(_POINTS, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    means = [float(part.mean()) for part in parts]
    spans = [(int(end) - len(part), int(end)) for part, end in zip(parts, ends, strict=True)]
    words = [f"steps {a + 1} to {b}: {mean:.4g}" for (a, b), mean in zip(spans, means, strict=True)]
    points = [
        Point(mean if math.isfinite(mean) else None, word)
        for mean, word in zip(means, words, strict=True)
    ]
    quarters = sorted({round(len(losses) * part / 4) for part in range(4)})
    depth = Depth(
        "loss, logarithmic: lower is closer",
        logarithmic(means),
        [points],
        [(step / len(losses), f"{step:,}") for step in quarters],
        f"step, of {len(losses):,}",
    )
    low = min((mean for mean in means if math.isfinite(mean)), default=math.nan)
    told = f"From {means[0]:.3g} to {means[-1]:.3g}, lowest {low:.3g}; {len(points)} points."
    rows = [[f"{a + 1} to {b}", f"{mean:.4g}"] for (a, b), mean in zip(spans, means, strict=True)]
    data = Table("Mean loss of steps", ["steps", "loss"], rows, numeric=["loss"])
    return Picture("Loss", depth_drawing("Loss", told, depth), data)


def _outputs(before: ValidationReport, after: ValidationReport) -> Table:
    earlier = {o.name: o for o in before.outputs if isinstance(o, ApproximateOutput)}
    rows = []
    for output in after.outputs:
        old = earlier.get(output.name)
        if isinstance(output, ApproximateOutput) and old is not None:
            rows.append(
                [
                    output.name,
                    *(
                        _change(was, now)
                        for was, now in zip(_cells(old), _cells(output), strict=True)
                    ),
                ]
            )
    head = ["output", "SQNR dB", "cosine", "top-1", "accuracy"]
    return Table("Before and after", head, rows, numeric=head[1:], names=head[:1])


def _change(was: str, now: str) -> str:
    return now if was == now else f"{was} {TO} {now}"


def _cells(output: ApproximateOutput) -> list[str]:
    return [
        decibels(output.sqnr_db, output.max_abs_error),
        number(output.cosine_mean, ".4f"),
        percent(output.top1_agreement),
        percent(output.accuracy_candidate),
    ]
