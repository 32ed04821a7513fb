"""The interval of the median, and what a ratio says."""

from __future__ import annotations

import numpy as np
import pytest

from normswap.timing.bench_report import FEWEST_ROUNDS, Ratio, median_interval, ratio_of


@pytest.mark.parametrize("count", [FEWEST_ROUNDS, 9, 10, 31, 50, 1000])
def test_the_ranks_are_those_of_the_binomial_distribution(count: int) -> None:
    """The widest ranks that leave at most 2.5 % on either side, and no wider ones."""
    binom = pytest.importorskip("scipy.stats").binom
    low, high = median_interval(np.random.default_rng(0).permutation(count).tolist())
    assert low + high == count - 1
    assert binom.cdf(low, count, 0.5) <= 0.025  # `low` draws lie below the interval
    assert binom.cdf(low + 1, count, 0.5) > 0.025


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of a distribution with a long tail, as times have; 4,000 samples tell 95 % to 0.7 points."""
    random = np.random.default_rng(0)
    for count in (6, 25):
        samples = np.exp(2 * random.standard_normal((4000, count)))  # of median 1
        held = [low <= 1 <= high for low, high in map(median_interval, samples.tolist())]
        assert 0.945 < np.mean(held) < 0.985


def test_ratios_are_of_the_same_round() -> None:
    """A machine that gets ten times slower in between changes nothing."""
    base = [1.0, 10.0, 1.0, 10.0, 10.0, 1.0, 10.0]
    ratio = ratio_of(
        [b * f for b, f in zip(base, [0.5, 0.5, 0.5, 0.4, 0.6, 0.5, 0.5], strict=True)], base
    )
    assert ratio.median == ratio.quartile_low == ratio.quartile_high == pytest.approx(0.5)
    assert (ratio.low, ratio.high) == pytest.approx((0.4, 0.6))
    assert ratio.verdict == "faster"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.8, 0.99, "faster"),
        (1.01, 1.2, "slower"),
        (0.99, 1.01, "no difference shown"),
        (1.0, 1.2, "no difference shown"),
    ],
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert Ratio((low + high) / 2, low, high, low, high).verdict == verdict
