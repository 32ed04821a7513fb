"""The figures of a comparison, as SVG and PNG, legible without colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from normswap.graph.graph import Array
from normswap.io.atomic import atomic_path
from normswap.timing.bench_report import BenchReport
from normswap.train.study.groups import groups
from normswap.train.study.runs import CRASHED, RunResult
from normswap.train.study.variants import (
    AFFINE,
    BN,
    FFN_BN,
    LN,
    PREDICTED,
    REP_BN,
    TITLES,
    VARIANTS,
)
from normswap.train.study.vitals import HIDDEN, LOSS, STATISTICS, Vitals

LOSSES, ACCURACY, CRASHES, ONSETS, TIMES = (
    "loss-curves",
    "accuracy",
    "crashes",
    "where-crashes-begin",
    "inference-time",
)
# Dark to light, a dash pattern and a marker each; hatches for bars. The hues of Okabe and Ito.
_STYLES: dict[str, tuple[str, Any, str, str]] = {
    LN: ("#000000", "-", "o", ""),
    BN: ("#d55e00", (0, (5, 2)), "s", "///"),
    FFN_BN: ("#0072b2", (0, (1, 1.2)), "^", "\\\\\\"),
    REP_BN: ("#56b4e9", (0, (5, 1.5, 1, 1.5)), "D", "xx"),
    AFFINE: ("#777777", "-", "v", ""),
    PREDICTED: ("#777777", "-", "P", ""),
}
_POINTS = 20  # of a loss curve
_BEFORE, _BEHIND = 15, 8  # records around the begin of a crash
_TOP = 3  # of a figure of losses: times the highest that a run began with
_WIDTH = 8.0  # inches; a README shows it about 800 pixels wide
_SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "normswap",  # the same numbers give the same file
    "hatch.linewidth": 0.8,
}


def write_figures(
    folder: Path,
    results: Sequence[RunResult],
    variants: Sequence[str],
    benches: Mapping[int, BenchReport],
) -> list[str]:
    """Writes each figure as ``NAME.svg`` and ``NAME.png``; returns the names. That on where crashes
    begin has runs of all settings, the others plain ones.

    Raises NormswapError if they cannot be written.
    """
    plain = [result for result in results if result.plain]
    began = [result for result in results if result.onset is not None]
    with rc_context(_SETTINGS):
        figures = {
            LOSSES: _losses(plain, variants),
            ACCURACY: _accuracy(plain, variants),
            CRASHES: _crashes(plain, variants),
        }
        if began:
            figures[ONSETS] = _onsets(began, variants)
        if benches:
            figures[TIMES] = _times(benches)
        for name, figure in figures.items():
            for suffix in ("svg", "png"):
                with atomic_path(folder / f"{name}.{suffix}") as file:
                    metadata = {"Date": None} if suffix == "svg" else {}
                    figure.savefig(file, format=suffix, dpi=150, metadata=metadata)
    return list(figures)


def _losses(results: Sequence[RunResult], variants: Sequence[str]) -> Figure:
    """A panel for each rate: the median over the seeds, their range, and where runs crashed."""
    rates = sorted({result.run.rate for result in results})
    columns = min(len(rates), 2 if len(rates) == 4 else 3)
    rows = -(-len(rates) // columns)
    figure, panels = _panels(rows, columns, 2.5)
    top = _TOP * max(result.losses[0] for result in results if result.losses)
    for panel, rate in zip(panels, rates, strict=False):
        panel.set_title(f"learning rate {rate:g}")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        for variant in variants:
            own = [r for r in results if (r.run.variant, r.run.rate) == (variant, rate)]
            _loss_curve(panel, variant, own, top)
    panels[0].set_ylim(top=top)  # of all of them
    for panel in panels[len(rates) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("training loss (nats)")
    for panel in panels[len(rates) - columns : len(rates)]:
        panel.set_xlabel("step")
        panel.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _loss_curve(panel: Axes, variant: str, results: Sequence[RunResult], top: float) -> None:
    color, dashes, _, _ = _STYLES[variant]
    drawn = [result for result in results if result.losses]
    if not drawn:
        return
    size = max(1, max(len(result.losses) for result in drawn) // _POINTS)
    curves = [_thinned(result.losses, size, top) for result in drawn]
    length = min(len(steps) for steps, _ in curves)  # up to where the first one stopped
    steps = curves[0][0][:length]
    losses = np.array([loss[:length] for _, loss in curves])
    panel.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.15, linewidth=0)
    label = VARIANTS[variant]
    panel.plot(steps, np.median(losses, 0), color=color, linestyle=dashes, label=label, zorder=3)
    for result, (own_steps, own) in zip(drawn, curves, strict=True):
        if result.crashed:
            panel.plot(own_steps, own, color=color, linestyle=dashes, linewidth=0.6)
            panel.plot(
                own_steps[-1:], own[-1:], "x", color=color, markersize=8, clip_on=False, zorder=4
            )


def _thinned(losses: Sequence[float], size: int, top: float) -> tuple[Array, Array]:
    """Means over stretches of ``size`` steps, at their last ones; what is above the figure is put
    at its edge."""
    firsts = np.arange(0, len(losses), size)
    means = np.add.reduceat(np.minimum(losses, top), firsts) / np.diff([*firsts, len(losses)])
    return np.append(firsts[1:], len(losses)), means


def _accuracy(results: Sequence[RunResult], variants: Sequence[str]) -> Figure:
    """The mean over the seeds, every seed as a small mark, crashed ones as crosses."""
    figure, (panel,) = _panels(1, 1, 3.6)
    panel.set_xscale("log")
    for index, variant in enumerate(variants):
        color, dashes, marker, _ = _STYLES[variant]
        aside = 1.05 ** (index - (len(variants) - 1) / 2)
        found = groups(results, variant)
        rates = [group.rate * aside for group in found]
        means = [group.mean for group in found]
        low = [group.mean - min(group.accuracies) for group in found]
        high = [max(group.accuracies) - group.mean for group in found]
        panel.errorbar(
            rates,
            means,
            (low, high),
            color=color,
            linestyle=dashes,
            marker=marker,
            markersize=5,
            capsize=3,
            elinewidth=1,
            label=VARIANTS[variant],
        )
        for rate, group in zip(rates, found, strict=True):
            for value, outcome in zip(group.accuracies, group.outcomes, strict=True):
                if outcome in CRASHED:
                    panel.plot(rate, value, "x", color=color, markersize=8)
    _rate_axis(panel, sorted({result.run.rate for result in results}))
    panel.set_ylabel("test accuracy (%)")
    panel.set_title("mean and range over the seeds; crosses: crashed runs", loc="left")
    panel.legend()
    return figure


def _crashes(results: Sequence[RunResult], variants: Sequence[str]) -> Figure:
    figure, (panel,) = _panels(1, 1, 2.8)
    rates = sorted({result.run.rate for result in results})
    width = 0.8 / len(variants)
    for index, variant in enumerate(variants):
        color, _, _, hatch = _STYLES[variant]
        found = groups(results, variant)
        shares = [100 * group.crashed / len(group.outcomes) for group in found]
        places = np.array([rates.index(group.rate) for group in found])
        places = places - 0.4 + width * (index + 0.5)
        face = color if variant == LN else "white"
        bars = panel.bar(places, shares, width * 0.9, color=face, edgecolor=color, hatch=hatch)
        bars.set_label(VARIANTS[variant])
        texts = [f"{group.crashed}/{len(group.outcomes)}" for group in found]
        panel.bar_label(bars, texts, fontsize=8, padding=1)
    panel.set_xticks(np.arange(len(rates)), [f"{rate:g}" for rate in rates])
    panel.set_ylim(0, 112)
    panel.set_yticks([0, 25, 50, 75, 100])
    panel.grid(visible=False, axis="x")
    panel.set_xlabel("learning rate")
    panel.set_ylabel("runs that crashed (%)")
    figure.legend(loc="outside upper center", ncols=len(variants))
    return figure


def _onsets(results: Sequence[RunResult], variants: Sequence[str]) -> Figure:
    """A panel for each statistic: crashed runs, a line each, from some records before the first
    thing left its range to some behind it; a circle where it was this statistic."""
    figure, panels = _panels(2, 2, 2.3, sharey=False)
    labelled = set()
    for result in results:
        onset = result.onset
        assert onset is not None
        at = [record.step for record in result.vitals].index(onset.step)
        shown = result.vitals[max(0, at - _BEFORE) : at + _BEHIND]
        steps = [record.step - onset.step for record in shown]
        color, dashes, marker, _ = _STYLES[result.run.variant]
        for panel, statistic in zip(panels, STATISTICS, strict=True):
            values = [_drawn(record, statistic) for record in shown]
            panel.plot(steps, values, color=color, linestyle=dashes, linewidth=0.8)
            if statistic in onset.statistics:
                panel.plot(0, _drawn(result.vitals[at], statistic), marker, color=color)
        if result.run.variant not in labelled:
            labelled.add(result.run.variant)
            panels[0].plot(
                [],
                [],
                color=color,
                linestyle=dashes,
                marker=marker,
                label=VARIANTS[result.run.variant],
            )
    for panel, (statistic, title) in zip(panels, STATISTICS.items(), strict=True):
        panel.set_title(title, loc="left")
        drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.lines])
        if statistic != LOSS and (drawn > 0).any():  # LN alone has no BatchNorm to draw
            panel.set_yscale("log")
        panel.axvline(0, color="black", linewidth=0.6)
    for panel in panels[2:]:
        panel.set_xlabel("steps from where something left its range")
    figure.legend(loc="outside upper center", ncols=len(variants))
    return figure


def _drawn(record: Vitals, statistic: str) -> float:
    """Of all FFNs the highest; what is not finite is left out of the line."""
    if statistic == HIDDEN:
        known = [value for value in record.hidden if value is not None]
        return max(known) if len(known) == len(record.hidden) and known else math.nan
    value = getattr(record, statistic)
    return math.nan if value is None else float(value)


def _times(benches: Mapping[int, BenchReport]) -> Figure:
    """Ratios to LN in the same rounds, in each runtime: a panel for each batch."""
    figure, panels = _panels(1, len(benches), 2.6)
    highest = 1.2
    for panel, (batch, bench) in zip(panels, benches.items(), strict=True):
        highest = max(highest, _ratios(panel, bench))
        panel.set_title(f"batch {batch}", loc="left")
        panel.axvline(1, color="black", linewidth=1)
        panel.grid(visible=False, axis="y")
    panels[0].set_xlim(0, 1.25 * highest)  # of all; intervals may leave it
    figure.supxlabel("time as a share of LN's, round by round (median, 95 %)", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3))
    return figure


def _ratios(panel: Axes, bench: BenchReport) -> float:
    """Draws them; returns the highest."""
    first = bench.results[0].model
    runtimes = list(dict.fromkeys(result.runtime for result in bench.results))
    names = {title: variant for variant, title in TITLES.items()}
    others = list(dict.fromkeys(r.model for r in bench.results if r.model != first))
    highest = 0.0
    for index, name in enumerate(others):
        color, _, marker, _ = _STYLES[names[name]]
        own = [r for r in bench.results if r.model == name and r.error is None]
        ratios = [(runtimes.index(r.runtime), r.ratio_in_runtime or r.ratio) for r in own]
        shown = [(place, ratio) for place, ratio in ratios if ratio is not None]
        highest = max(highest, *(ratio.median for _, ratio in shown), 0.0)
        panel.errorbar(
            [ratio.median for _, ratio in shown],
            [place + 0.15 * (index - (len(others) - 1) / 2) for place, _ in shown],
            xerr=(
                [ratio.median - ratio.low for _, ratio in shown],
                [ratio.high - ratio.median for _, ratio in shown],
            ),
            color=color,
            linestyle="none",
            marker=marker,
            markersize=5,
            capsize=3,
            label=name,
        )
    panel.set_yticks(range(len(runtimes)), runtimes)
    panel.set_ylim(len(runtimes) - 0.5, -0.5)
    return highest


def _panels(
    rows: int, columns: int, height: float, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, rows * height), layout="constrained")
    made = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=sharey)
    return figure, list(made.flat)


def _rate_axis(panel: Axes, rates: Sequence[float]) -> None:
    panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("learning rate")
