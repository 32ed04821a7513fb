"""Streaming moments equal those of all the data at once, however it is split and scaled."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from normswap.fit.batch_norm import copied, identity, matched_moments
from normswap.fit.moments import ChannelMoments


def _moments(rows: np.ndarray, *splits: int) -> ChannelMoments:
    moments = ChannelMoments()
    for part in np.split(rows, sorted(splits)):
        moments.add(part, -1)
    return moments


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    channels=st.integers(1, 5),
    mean=st.sampled_from([0.0, 1.0, -1e4, 1e6]),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    splits=st.lists(st.integers(0, 40), max_size=5),
)
def test_merging_is_exact(
    seed: int, rows: int, channels: int, mean: float, scale: float, splits: list[int]
) -> None:
    data = mean + scale * np.random.default_rng(seed).standard_normal((rows, channels))
    moments = _moments(data, *(s for s in splits if s <= rows))
    size = np.abs(data).max()
    np.testing.assert_allclose(moments.mean, data.mean(0), atol=1e-13 * size, rtol=0)
    spread = np.sqrt(data.var(0))
    np.testing.assert_allclose(np.sqrt(moments.variance), spread, atol=1e-13 * size, rtol=1e-9)
    assert moments.count == rows


def test_channels_may_lie_on_any_axis() -> None:
    data = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float16)
    moments = ChannelMoments()
    moments.add(data, 1)
    rows = np.moveaxis(data, 1, -1).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-12)


def _apply(constants: object, x: np.ndarray) -> np.ndarray:
    c: object = constants
    inverse = 1 / np.sqrt(c.variance + c.epsilon)  # type: ignore[attr-defined]
    return c.weight * (x - c.mean) * inverse + c.bias  # type: ignore[attr-defined]


def test_matched_moments_match_with_a_negative_gamma_and_a_dead_channel() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((100, 3)) * [1, 5, 0] + [0, 100, 2]
    y = random.standard_normal((100, 3)) * [2, 0.1, 1] + [1, -1, 3]
    constants = matched_moments(np.array([1.0, -2.0, 1.0]), _moments(x), _moments(y), 1e-5)
    got = _apply(constants, x)
    np.testing.assert_allclose(got.mean(0), y.mean(0), atol=1e-9)
    np.testing.assert_allclose(got.std(0)[:2], y.std(0)[:2], rtol=1e-9)
    assert got.std(0)[2] < 1e-12
    assert np.corrcoef(got[:, 1], x[:, 1])[0, 1] < -0.999


def test_copied_keeps_gamma_and_beta() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2)) * [1, 3] + [0, 7]
    constants = copied(np.array([2.0, 3.0]), None, _moments(x), 0.0)
    got = _apply(constants, x)
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(got.std(0), [2, 3], rtol=1e-5)


def test_identity_is_one() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2)) * [1, 0] + [0, 7]
    np.testing.assert_allclose(_apply(identity(_moments(x), 1e-5), x), x, atol=1e-12)
