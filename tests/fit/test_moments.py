"""Streaming moments equal those of all the data at once, however it is split and scaled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normswap.fit.channelwise import BatchNormConstants, identity, safe_epsilon, with_statistics
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


def _apply(constants: BatchNormConstants, x: np.ndarray) -> np.ndarray:
    inverse = 1 / np.sqrt(constants.variance + constants.epsilon)
    return constants.weight * (x - constants.mean) * inverse + constants.bias


def test_identity_changes_nothing_whatever_the_epsilon() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2)) * [1, 0] + [0, 7]
    moments = _moments(x)
    constants = identity(moments.mean, moments.variance, 1e-2)
    np.testing.assert_allclose(_apply(constants, x), x, atol=1e-12)


def test_with_statistics_is_the_scale_and_shift_and_keeps_the_statistics() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)) * [1, 5, 0] + [0, 100, 2]
    scale, shift = np.array([2.0, -3.0, 0.5]), np.array([1.0, -1.0, 4.0])
    moments = _moments(x)
    constants = with_statistics(scale, shift, moments.mean, moments.variance, 1e-3)
    np.testing.assert_allclose(_apply(constants, x), scale * x + shift, atol=1e-10)
    np.testing.assert_array_equal(constants.mean, moments.mean)
    np.testing.assert_array_equal(constants.variance, moments.variance)


@pytest.mark.parametrize(
    ("epsilon", "variance", "expected"),
    [
        (1e-5, [1.0, 1.0], 1e-5),  # the norm's own where it is enough
        (1e-12, [0.0, 2.0], 1e-6),  # a channel without variance is divided by a sixth digit
        (1e-12, [0.0, 2.4691357802469136], 1.23457e-6),  # with the digits that a file keeps
    ],
)
def test_safe_epsilon(epsilon: float, variance: list[float], expected: float) -> None:
    assert safe_epsilon(epsilon, np.array(variance)) == expected
