"""Top-5 agreement and KL where they are clear, and where they are a matter of definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from normswap.parity.approximate import ClassScores, kl_divergence, top5_agreement

FALLING = np.arange(7.0, 0, -1)[None]  # the first class is first


def test_top5_agreement() -> None:
    fifth, sixth = FALLING.copy(), FALLING.copy()
    fifth[0, 0], sixth[0, 0] = 2.5, 1.5
    assert top5_agreement(FALLING, fifth) == 1
    assert top5_agreement(FALLING, sixth) == 0
    assert top5_agreement(np.repeat(FALLING, 2, 0), np.concatenate([fifth, sixth])) == 0.5
    level = np.ones((1, 7))  # the five first places come first
    assert top5_agreement(FALLING, level) == 1
    assert top5_agreement(FALLING[:, ::-1], level) == 0
    spoiled = FALLING.copy()
    spoiled[0, 6] = math.nan
    assert top5_agreement(FALLING, spoiled) == top5_agreement(spoiled, FALLING) == 0
    assert math.isnan(top5_agreement(FALLING[:, :5], FALLING[:, :5]))
    assert math.isnan(top5_agreement(FALLING[:0], FALLING[:0]))


def test_kl_of_logits_and_of_probabilities() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kl_divergence(p, q) == pytest.approx(expected)
    assert kl_divergence(np.log(p) + 1e4, np.log(q) - 1e4) == pytest.approx(expected)
    half = p.astype(np.float16) * np.float16(1.004)  # a softmax in half precision
    assert kl_divergence(half, q) == pytest.approx(expected, abs=1e-3)
    # Where one of them is no distribution both are logits.
    assert kl_divergence(p, np.log(q)) == pytest.approx(kl_divergence(np.log(np.exp(p)), np.log(q)))
    assert kl_divergence(p, p) == 0


def test_kl_is_finite_for_finite_scores() -> None:
    sure, wrong = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    assert kl_divergence(sure, wrong) == pytest.approx(-math.log(np.finfo(float).tiny))
    assert kl_divergence(1e4 * sure - 5e3, 1e4 * wrong - 5e3) == pytest.approx(1e4)
    for spoiled in (math.nan, math.inf, -math.inf):
        assert math.isnan(kl_divergence(sure, np.array([[spoiled, 0.0]])))
        assert math.isnan(kl_divergence(np.array([[spoiled, 0.0]]), sure))
    assert math.isnan(kl_divergence(sure[:, :1], sure[:, :1]))
    assert math.isnan(kl_divergence(sure[:0], sure[:0]))


def test_batches_count_as_one() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((9, 8))
    b = a + rng.standard_normal((9, 8))
    tally = ClassScores()
    for rows in (slice(0, 2), slice(2, 9)):
        tally.add(a[rows], b[rows])
    assert tally.top5_agreement == top5_agreement(a, b)
    assert tally.kl_mean == pytest.approx(kl_divergence(a, b))
    assert tally.kl_mean > 0.1
    with pytest.raises(ValueError, match="shapes"):
        tally.add(a, b[:2])
    with pytest.raises(ValueError, match="shapes"):
        tally.add(a[0], b[0])
