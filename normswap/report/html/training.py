"""The section on how a model was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normswap.parity.report import ApproximateOutput, ValidationReport
from normswap.report.html.agreement import approximate_outputs
from normswap.report.html.along import Point, depth_drawing
from normswap.report.html.parts import TO, Picture, Section, Table, closeness, percent
from normswap.report.html.svg import logarithmic

_POINTS = 60  # of a curve; more cannot be distinguished


@dataclass(frozen=True)
class Training:
    """``losses``: one for each step. ``before``: the model against the reference before it was
    trained, under the approximate contract. ``facts``: further lines of the table, by name."""

    losses: Sequence[float]
    before: ValidationReport | None
    facts: dict[str, str]


def training_section(training: Training, report: ValidationReport) -> Section:
    """``report``: of the trained model."""
    first, last = training.losses[0], training.losses[-1]
    text = [f"{len(training.losses):,} steps; the loss went from {first:.4g} to {last:.4g}."]
    tables = [] if training.before is None else [_outputs(training.before, report)]
    facts = [[name, value] for name, value in training.facts.items()]
    tables.append(Table("How it was trained", ["", "value"], facts))
    pictures = [_curve(training.losses)]
    return Section("training", "Training", text, pictures=pictures, tables=tables, wide=True)


def _curve(losses: Sequence[float]) -> Picture:
    parts = np.array_split(np.asarray(losses, np.float64), min(_POINTS, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    means = [float(part.mean()) for part in parts]
    rows = [
        [f"{end - len(part) + 1} to {end}", f"{mean:.4g}"]
        for part, end, mean in zip(parts, ends, means, strict=True)
    ]
    points = [
        Point(mean if math.isfinite(mean) else None, f"steps {steps}: {words}")
        for mean, (steps, words) in zip(means, rows, strict=True)
    ]
    quarters = sorted({round(len(losses) * part / 4) for part in range(4)})
    low = min((mean for mean in means if math.isfinite(mean)), default=math.nan)
    drawing = depth_drawing(
        "Loss",
        f"From {means[0]:.3g} to {means[-1]:.3g}, lowest {low:.3g}; {len(points)} points.",
        "loss, logarithmic: lower is closer",
        logarithmic(means),
        [points],
        [(step / len(losses), f"{step:,}") for step in quarters],
        f"step, of {len(losses):,}",
    )
    data = Table("Mean loss of steps", ["steps", "loss"], rows, numeric=["loss"])
    return Picture("Loss", drawing, data)


def _outputs(before: ValidationReport, after: ValidationReport) -> Table:
    earlier = {output.name: output for output in approximate_outputs(before)}
    rows = []
    for output in approximate_outputs(after):
        if output.name in earlier:
            pairs = zip(_figures(earlier[output.name]), _figures(output), strict=True)
            changes = [now if was == now else f"{was} {TO} {now}" for was, now in pairs]
            rows.append([output.name, *changes])
    head = ["output", "SQNR dB", "cosine", "top-1", "accuracy"]
    return Table("Before and after", head, rows, numeric=head[1:], names=head[:1])


def _figures(output: ApproximateOutput) -> list[str]:
    shares = [percent(output.top1_agreement), percent(output.accuracy_candidate)]
    return [*list(closeness(output).values())[:2], *shares]
