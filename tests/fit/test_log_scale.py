"""The deviation of a token's channels, predicted from the token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normswap.fit.log_scale import Parts, Range, log_factor, log_scales, predictions
from normswap.graph.graph import Array


def _parts(x: Array, before: Array | None = None) -> Parts:
    held_out = np.arange(len(x)) % 5 == 4

    def parts() -> Iterator[tuple[Array, Array | None, Array]]:
        for start in range(0, len(x), 50):
            rows = slice(start, start + 50)
            yield x[rows], None if before is None else before[rows], held_out[rows]

    return parts


def _rows(count: int, channels: int) -> Array:
    random = np.random.default_rng(0)
    return random.standard_normal((count, channels)) * random.lognormal(0, 0.5, (count, 1))


def _error(predicted: Array, x: Array, centred: bool = True) -> float:
    return float(np.square(predicted - log_factor(x, 1e-6, centred)).mean())


@pytest.mark.parametrize("centred", [True, False])
def test_more_directions_leave_less_error(centred: bool) -> None:
    x = _rows(1500, 16) + (0 if centred else 0.5)
    scales = log_scales(_parts(x[:1000]), 16, 1e-6, centred, [0, 4, 15])
    errors = [_error(u, x[1000:], centred) for u in predictions(scales, x[1000:], None)]
    assert scales[0].is_constant
    assert errors[3] < errors[2] < errors[0]
    assert errors[3] < 0.2 * errors[0]


def test_what_was_predicted_before_helps() -> None:
    x = _rows(1500, 16)
    before = log_factor(x, 1e-6, True) + 0.05 * np.random.default_rng(1).standard_normal(1500)
    alone = log_scales(_parts(x[:1000]), 16, 1e-6, True, [4])[1]
    chained = log_scales(_parts(x[:1000], before[:1000]), 16, 1e-6, True, [4])[1]
    (one,), (other,) = (
        predictions([s], x[1000:], b) for s, b in ((alone, None), (chained, before[1000:]))
    )
    assert _error(other, x[1000:]) < 0.3 * _error(one, x[1000:])


def test_fewer_rows_than_channels() -> None:
    """Directions that the rows do not have get no weight."""
    random = np.random.default_rng(0)
    x = np.maximum(random.normal(size=(30, 512)) - 2.5, 0) * random.lognormal(size=(30, 1))
    fitted = log_scales(_parts(x), 512, 1e-6, True, [0, 32, 128])
    scales = [replace(scale, low=-np.inf, high=np.inf) for scale in fitted]
    assert np.abs(predictions(scales, x, None)).max() < 100


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_what_is_bounded_stays_within_the_range(seed: int, size: float) -> None:
    x = _rows(60, 6)
    range_ = Range()
    range_.add(log_factor(x, 1e-6, True))
    scale = log_scales(_parts(x), 6, 1e-6, True, [2])[1]
    far = size * np.random.default_rng(seed).standard_normal((20, 6))
    (predicted,) = predictions([scale], far, None)
    assert range_.low <= predicted.min() <= predicted.max() <= range_.high
