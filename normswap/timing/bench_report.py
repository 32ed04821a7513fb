"""The result of ``bench`` as plain values, and the statistics of its ratios."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from normswap.shown import Shown

SCHEMA = "normswap.bench/1"
_CONFIDENCE = 0.95
FEWEST_ROUNDS = 6
"""With fewer, not even the smallest and the largest of them hold the median with 95 %."""


@dataclass(frozen=True)
class Ratio:
    """The times of one model over those of another in the same rounds: the median with its 95 %
    confidence interval (``low``, ``high``; see ``median_interval``), and the quartiles."""

    median: float
    low: float
    high: float
    quartile_low: float
    quartile_high: float

    @property
    def verdict(self) -> str:
        """'faster', 'slower', or 'no difference shown' where the interval holds 1."""
        if self.low <= 1 <= self.high:
            return "no difference shown"
        return "faster" if self.high < 1 else "slower"


@dataclass(frozen=True)
class Measurement:
    """One model in one runtime.

    ``milliseconds``: per run, the median, with its quartiles. ``ratio``: to the first model of all
    that could be measured, None for that one; ``ratio_in_runtime``: to the first one in this
    runtime, None where that is this one or the first of all.
    ``peak_mib``: the largest resident memory of a process of its own that loads the model and runs
    it, above that of one that has only imported the runtime. ``error``: why it could not be
    measured; all figures are None then.
    """

    model: str
    path: str | None
    runtime: str
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio: Ratio | None = None
    ratio_in_runtime: Ratio | None = None
    peak_mib: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class BenchReport(Shown):
    """The models in turn, round by round. ``inputs``: sizes by name, as '8x3x224x224 float32'.
    ``versions``: of libraries by name; of the runtimes that took part also what they ran on, as
    '2026.4.1 CPU bfloat16'."""

    view: ClassVar[str] = "normswap.report.terminal:bench_view"

    inputs: dict[str, str]
    rounds: int
    threads: int
    versions: dict[str, str]
    machine: str
    results: list[Measurement]

    @property
    def complete(self) -> bool:
        """Whether everything could be measured."""
        return all(result.error is None for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: ``schema`` ("normswap.bench/1"), then the fields of this
        class; every ratio also has its ``verdict``. The schema's number goes up when a field is
        removed or changes its meaning, not when one is added."""
        document = {"schema": SCHEMA} | dataclasses.asdict(self)
        for result, written in zip(self.results, document["results"], strict=True):
            for name in ("ratio", "ratio_in_runtime"):
                if written[name] is not None:
                    written[name]["verdict"] = getattr(result, name).verdict
        return document


def ratio_of(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio of ``seconds`` to ``base``, times of the same rounds; at least ``FEWEST_ROUNDS``
    of each."""
    ratios = np.asarray(seconds) / np.asarray(base)
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Ratio(float(median), *median_interval(ratios.tolist()), float(low), float(high))


def median_interval(sample: Sequence[float]) -> tuple[float, float]:
    """A confidence interval of at least 95 % for the median of any distribution that ``sample``
    was drawn from.

    From order statistics: each of n draws lies below the median with probability 1/2, so the k-th
    smallest lies above it with that of fewer than k successes in n throws of a coin. k is the
    largest for which this is at most 2.5 %; the interval ends at the k-th smallest and the k-th
    largest. See H. A. David, Order Statistics, section 7.1.
    """
    ordered = sorted(sample)
    rank = _rank(len(ordered))
    return ordered[rank - 1], ordered[-rank]


def _rank(count: int) -> int:
    below, rank = 0, 0
    while 2 * (below + math.comb(count, rank)) <= (1 - _CONFIDENCE) * 2**count:
        below += math.comb(count, rank)
        rank += 1
    assert rank, f"{count} are too few"
    return rank
