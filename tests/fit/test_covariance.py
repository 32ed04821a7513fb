"""Joint moments from streaming sums equal those of all rows at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normswap.fit import covariance
from normswap.fit.covariance import JointMoments, JointSums, held_out_rows, joint_moments

_ULP = 2.0**-52


@dataclass
class _Direct:
    """The moments of all rows by the definition, in numpy's widest floats."""

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        x, y = self.x.astype(np.longdouble), self.y.astype(np.longdouble)
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        x, y = x - self.x_mean, y - self.y_mean
        self.xx, self.xy, self.yy = x.T @ x, x.T @ y, np.square(y).sum(0)

    def check(self, moments: JointMoments) -> None:
        """A mean may be off by rounding of the values' size, and that is all that sums may
        inherit; digits lost to a large mean would be the square of it."""
        count = len(self.x)
        assert moments.count == count
        mean_x, mean_y = (8 * _ULP * np.abs(a).max(0) for a in (self.x, self.y))
        _close(moments.x_mean, self.x_mean, mean_x)
        _close(moments.y_mean, self.y_mean, mean_y)
        dx, dy = (np.sqrt(np.square(a - a.mean(0)).sum(0)) for a in (self.x, self.y))
        ex, ey = (1e-14 * d + np.sqrt(count) * m for d, m in ((dx, mean_x), (dy, mean_y)))
        _close(moments.xx, self.xx, np.outer(dx, ex) + np.outer(ex, dx) + np.outer(ex, ex))
        _close(moments.xy, self.xy, np.outer(dx, ey) + np.outer(ex, dy) + np.outer(ex, ey))
        _close(moments.yy, self.yy, 2 * dy * ey + ey * ey)


def _close(got: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    excess = np.abs(got - expected) - bound
    assert (excess <= 0).all(), (got, expected, bound)


@pytest.fixture(autouse=True, scope="module")
def _small_parts() -> Iterator[None]:
    """So that a few rows and features fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "_ROWS", 7)
        patch.setattr(covariance, "_BLOCK", 3)
        yield


def _of(x: np.ndarray, y: np.ndarray, splits: list[int]) -> JointMoments:
    sums = JointSums(x.shape[1], y.shape[1])
    cuts = sorted(s for s in splits if s <= len(x))
    for part in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        sums.add(*part, np.ones(len(part[0]), bool))
    return sums.moments()


@st.composite
def _rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rows of features and targets that depend on them, of any size and offset."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, features, targets = (draw(st.integers(1, n)) for n in (30, 7, 3))
    x = random.standard_normal((count, features))
    y = x @ random.standard_normal((features, targets)) + random.standard_normal((count, targets))
    means = st.sampled_from([0.0, 1.0, -1e4, 1e6])
    scales = st.sampled_from([1e-6, 1.0, 1e3])
    return draw(means) + draw(scales) * x, draw(means) + draw(scales) * y


_splits = st.lists(st.integers(0, 30), max_size=5)


@given(_rows(), _splits)
def test_adding_in_any_parts_is_exact(
    rows: tuple[np.ndarray, np.ndarray], splits: list[int]
) -> None:
    _Direct(*rows).check(_of(*rows, splits))


@given(_rows(), st.integers(0, 30), _splits)
def test_merging_is_exact_and_leaves_both_parts_alone(
    rows: tuple[np.ndarray, np.ndarray], cut: int, splits: list[int]
) -> None:
    x, y = rows
    parts = _of(x[:cut], y[:cut], splits), _of(x[cut:], y[cut:], splits)
    before = [_copied(part) for part in parts]
    merged = parts[0].merged(parts[1])
    _Direct(x, y).check(merged)
    for part, kept in zip(parts, before, strict=True):
        _unchanged(part, kept)


@given(_rows(), st.integers(0, 2**32 - 1))
def test_residual_is_that_of_what_the_map_leaves(
    rows: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    x, y = rows[0] - rows[0].mean(0), rows[1]
    x = x / max(np.abs(x).max(), 1e-300) + 3  # the size of x and of the map trade off
    random = np.random.default_rng(seed)
    weight = np.abs(y).max() * random.standard_normal((x.shape[1], y.shape[1]))
    moments = _of(x, y, [7])
    before = _copied(moments)
    left = moments.residual(weight)
    expected = _Direct(x, y - x @ weight)
    # What is subtracted from each other has the size of the targets and of the map's values.
    size = max(np.abs(y).max(), np.abs(x @ weight).max())
    tiny = 1e-13 * len(x)
    assert left.count == len(x)
    _close(left.y_mean, expected.y_mean, np.full(y.shape[1], tiny * size))
    _close(left.xx, expected.xx, np.full(left.xx.shape, tiny))
    _close(left.xy, expected.xy, np.full(left.xy.shape, tiny * size))
    _close(left.yy, expected.yy, np.full(left.yy.shape, tiny * size * size))
    _unchanged(moments, before)


def test_the_rows_that_are_added_stay_as_they_are() -> None:
    x, y = (np.random.default_rng(0).standard_normal((5, n)) for n in (3, 2))
    for dtype in (np.float64, np.float32, np.float16):
        given_x, given_y = x.astype(dtype), y.astype(dtype)
        before = given_x.copy(), given_y.copy()
        JointSums(3, 2).add(given_x, given_y, np.ones(5, bool))
        np.testing.assert_array_equal(given_x, before[0])
        np.testing.assert_array_equal(given_y, before[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_summed_in_double(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 2)).astype(dtype)
    moments = _of(x, x, [1000])
    _Direct(x.astype(np.float64), x.astype(np.float64)).check(moments)


def test_no_rows_change_nothing() -> None:
    sums = JointSums(3, 2)
    sums.add(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0, bool))
    sums.add(np.ones((4, 3)), np.ones((4, 2)), np.zeros(4, bool))
    moments = sums.moments()
    assert moments.count == 0
    assert not moments.xx.any()


@given(_rows(), st.integers(0, 2**32 - 1))
def test_rows_held_out_are_not_summed(rows: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    x, y = rows
    held_out = np.random.default_rng(seed).random(len(x)) < 0.5

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for chosen in np.array_split(np.arange(len(x)), 3):
            yield x[chosen], y[chosen], held_out[chosen]

    moments = joint_moments(parts, x.shape[1], y.shape[1])
    assert moments.count == (~held_out).sum()
    if moments.count:
        _Direct(x[~held_out], y[~held_out]).check(moments)
    others = list(held_out_rows(parts))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in others]), x[held_out])
    np.testing.assert_array_equal(np.concatenate([y for _, y in others]), y[held_out])


def test_some_targets_and_scaled_features() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((20, 4)) + 9, random.standard_normal((20, 5))
    scale, shift = random.standard_normal(4), random.standard_normal(4)
    _Direct(x, y[:, ::2]).check(_of(x, y, []).targets(slice(None, None, 2)))
    _Direct(scale * x + shift, y).check(_of(x, y, []).scaled(scale, shift))


def _copied(moments: JointMoments) -> dict[str, np.ndarray]:
    return {name: np.copy(array) for name, array in vars(moments).items()}


def _unchanged(moments: JointMoments, before: dict[str, np.ndarray]) -> None:
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(moments, name), array, err_msg=name)
