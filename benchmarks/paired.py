"""Ratios between what was measured in turn, so that what disturbs the machine disturbs all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once per round; the rounds start at another one each."""
    for number in range(rounds):
        start = number % len(names)
        yield from (*names[start:], *names[:start])


def interleaved(
    runs: Mapping[str, Callable[[], float]], rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """What each of ``runs`` returns in each round, after ``warm_up`` rounds that do not count."""
    for name in turns(list(runs), warm_up):
        runs[name]()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for name in turns(list(runs), rounds):
        found[name].append(runs[name]())
    return found


def spread(values: Sequence[float]) -> Spread:
    """Of one value: that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Of the values to those of the same round."""
    return spread([a / b for a, b in zip(values, base, strict=True)])
