"""Results of runs that never were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from normswap.timing.bench_report import BenchReport, Measurement, Ratio
from normswap.train.study.runs import DIVERGED, TRAINED, Folded, Run, RunResult
from normswap.train.study.variants import LN, VARIANTS

STEPS = 400


def made_up(accuracies: Mapping[tuple[str, float], Sequence[float | None]]) -> list[RunResult]:
    """One run for each accuracy in percent, by variant and rate; None: it stopped at NaN."""
    results = []
    for (variant, rate), values in accuracies.items():
        for seed, value in enumerate(values):
            losses = [
                2.3 * 0.99**step for step in range(STEPS if value is not None else STEPS // 3)
            ]
            folded = None if variant == LN else Folded(0, True, (value or 10.0) / 100)
            result = RunResult(
                Run(variant, rate, seed),
                DIVERGED if value is None else TRAINED,
                losses,
                losses[-1],
                (10.0 if value is None else value) / 100,
                (10.0 if value is None else value) / 100,
                1.0,
                1.0,
                stopped="training: the loss became nan" if value is None else None,
                folded=folded if value is not None else None,
            )
            results.append(result)
    return results


def made_up_bench(ratios: Mapping[str, tuple[float, float, float]]) -> BenchReport:
    """LN and BN in each of the runtimes, with median, low and high of BN's ratio."""
    measured = []
    for runtime, (median, low, high) in ratios.items():
        ratio = Ratio(median, low, high, low, high)
        first = not measured
        measured += [
            Measurement("LN", None, runtime, 1.0, (0.9, 1.1), None if first else ratio, None, 1.0),
            Measurement(
                VARIANTS["bn"],
                None,
                runtime,
                median,
                (low, high),
                ratio if first else Ratio(9, 9, 9, 9, 9),
                None if first else ratio,
                1.0,
            ),
        ]
    versions = dict.fromkeys(ratios, "1")
    return BenchReport({"x": "2x3 float32"}, 10, 1, versions, "a machine", measured)
