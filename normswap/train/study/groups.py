"""How training runs ended, by variant and learning rate, and what sets variants apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normswap.train.study.runs import CRASHED, RunResult

# Student's t, 97.5 %, for 1, 2, ... degrees of freedom; for more the last is on the safe side.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Group:
    """The plain runs of a variant at one rate, one for each of ``seeds``. ``accuracies``: on the
    test samples, in percent; ``validated``: on those to validate. ``gaps``: accuracy with the
    running statistics of BatchNorms less that with those of each batch, in points, of the runs that
    have both."""

    variant: str
    rate: float
    seeds: list[int]
    accuracies: list[float]
    validated: list[float]
    gaps: list[float]
    outcomes: list[str]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        """The sample's standard deviation over the seeds; 0 for one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else 0.0

    @property
    def crashed(self) -> int:
        return sum(outcome in CRASHED for outcome in self.outcomes)


@dataclass(frozen=True)
class Difference:
    """Of two variants' accuracies in points, seed by seed, each at its best rate: the mean, with
    Student's 95 % interval (None for one seed)."""

    mean: float
    low: float | None
    high: float | None


def groups(results: Sequence[RunResult], variant: str) -> list[Group]:
    """In the order of the rates."""
    own = [r for r in results if r.run.variant == variant and r.plain]
    own.sort(key=lambda r: (r.run.rate, r.run.seed))
    made = []
    for rate, runs in itertools.groupby(own, key=lambda r: r.run.rate):
        found = list(runs)
        made.append(
            Group(
                variant,
                rate,
                [r.run.seed for r in found],
                [100 * r.accuracy for r in found],
                [100 * r.validation_accuracy for r in found],
                [
                    100 * (r.accuracy - r.batch_accuracy)
                    for r in found
                    if r.batch_accuracy is not None
                ],
                [r.outcome for r in found],
            )
        )
    return made


def at_best_rate(results: Sequence[RunResult], variant: str) -> Group:
    """Of the rates with the most seeds the one with the highest mean validation accuracy; the lower
    of two that are equal."""
    found = groups(results, variant)
    most = max(len(group.seeds) for group in found)
    whole = [group for group in found if len(group.seeds) == most]
    return max(whole, key=lambda group: (float(np.mean(group.validated)), -group.rate))


def difference(results: Sequence[RunResult], variant: str, base: str) -> Difference:
    """Seeds give both the same initial weights and the same batches, so they are pairs."""
    ours, theirs = (
        dict(zip(group.seeds, group.accuracies, strict=True))
        for group in (at_best_rate(results, name) for name in (variant, base))
    )
    gaps = np.array([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return Difference(mean, None, None)
    free = min(len(gaps) - 1, len(_T))
    half = _T[free - 1] * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return Difference(mean, mean - half, mean + half)


def crashes(results: Sequence[RunResult], variant: str) -> tuple[int, int]:
    """Of how many plain runs how many crashed, over all rates: (crashed, all)."""
    own = [result for result in results if result.run.variant == variant and result.plain]
    return sum(result.crashed for result in own), len(own)


def crashes_more(a: tuple[int, int], b: tuple[int, int]) -> float:
    """How likely ``a`` would have so many or more of the crashes if both were alike: Fisher's exact
    test, one-sided."""
    crashed, runs = a[0] + b[0], a[1] + b[1]
    ways = [
        math.comb(crashed, k) * math.comb(runs - crashed, a[1] - k)
        for k in range(a[0], min(crashed, a[1]) + 1)
    ]
    return sum(ways) / math.comb(runs, a[1])


def highest_stable(results: Sequence[RunResult], variant: str, points: float = 5.0) -> float | None:
    """The highest rate up to which no run crashed and the mean stayed within ``points`` of the
    variant's best; None if there is none."""
    best = at_best_rate(results, variant).mean
    stable = None
    for group in groups(results, variant):
        if group.crashed:
            break
        if group.mean >= best - points:
            stable = group.rate
    return stable
