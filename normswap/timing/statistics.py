"""What the times of many rounds say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normswap.timing.report import Ratio

CONFIDENCE = 0.95
FEWEST_ROUNDS = 6
"""With fewer, not even the smallest and the largest of them hold the median with 95 %."""


def ratio_of(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Of the times in ``seconds`` to those of ``base`` in the same rounds; at least
    ``FEWEST_ROUNDS`` of them."""
    ratios = np.asarray(seconds) / np.asarray(base)
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Ratio(float(median), *median_interval(ratios.tolist()), float(low), float(high))


def median_interval(sample: Sequence[float]) -> tuple[float, float]:
    """A confidence interval of at least 95 % for the median of the distribution that ``sample``
    was drawn from, whatever that is.

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
    while 2 * (below + math.comb(count, rank)) <= (1 - CONFIDENCE) * 2**count:
        below += math.comb(count, rank)
        rank += 1
    assert rank, f"{count} are too few"
    return rank
