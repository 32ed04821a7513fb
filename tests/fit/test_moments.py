"""Streaming moments, also by group, equal those of all the rows at once, however split."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from normswap.fit.moments import ChannelMoments, GroupMoments


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


_GROUPS = 4
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def _rows(draw: st.DrawFn) -> Rows:
    """x, y and the group of each row; groups may lack rows."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, channels = draw(st.integers(0, 40)), draw(st.integers(1, 4))
    mean, scale = draw(st.sampled_from([0.0, -1e4, 1e6])), draw(st.sampled_from([1e-5, 1.0, 1e3]))
    allowed = draw(st.lists(st.integers(0, _GROUPS - 1), min_size=1, unique=True))
    group = random.choice(allowed, count)
    x = random.standard_normal((count, channels)) * (1 + group[:, None])
    y = x * random.standard_normal(channels) + random.standard_normal((count, channels))
    return mean + scale * x, mean - scale * y, group


def _of(rows: Rows, splits: list[int]) -> GroupMoments:
    x, _, group = rows
    moments = GroupMoments(_GROUPS, x.shape[1])
    cuts = sorted(s for s in splits if s <= len(group))
    for part in zip(*(np.split(array, cuts) for array in rows), strict=True):
        moments.add(*part)
    return moments


def _check(moments: GroupMoments, rows: Rows) -> None:
    x, y, group = (a.astype(np.longdouble) for a in rows)
    size = max(np.abs(x).max(initial=0), np.abs(y).max(initial=0))
    off = 1e-14 * float(size)  # what rounding of values of this size may do to a mean
    for number in range(_GROUPS):
        chosen = group == number
        assert moments.count[number] == chosen.sum()
        if not chosen.any():
            for name in ("x_mean", "y_mean", "x_variance", "y_variance", "covariance"):
                assert not getattr(moments, name)[number].any(), name
            continue
        a, b = x[chosen], y[chosen]
        np.testing.assert_allclose(moments.x_mean[number], a.mean(0), atol=off, rtol=0)
        np.testing.assert_allclose(moments.y_mean[number], b.mean(0), atol=off, rtol=0)
        dx, dy = a - a.mean(0), b - b.mean(0)
        sx, sy = (np.sqrt(np.square(d).mean(0)) for d in (dx, dy))
        bounds = ((dx, dx, sx, sx), (dy, dy, sy, sy), (dx, dy, sx, sy))
        got = (moments.x_variance, moments.y_variance, moments.covariance)
        for (p, q, sp, sq), value in zip(bounds, got, strict=True):
            error = np.abs(value[number] - (p * q).mean(0))
            assert (error <= 1e-13 * sp * sq + 4 * off * (sp + sq) + 4 * off**2).all()


@given(_rows(), st.lists(st.integers(0, 40), max_size=5))
def test_adding_in_any_parts_is_exact(rows: Rows, splits: list[int]) -> None:
    _check(_of(rows, splits), rows)


@given(_rows(), st.integers(0, 40))
def test_merging_is_exact_and_leaves_both_parts_alone(rows: Rows, cut: int) -> None:
    first = _of(tuple(a[:cut] for a in rows), [])  # type: ignore[arg-type]
    second = _of(tuple(a[cut:] for a in rows), [])  # type: ignore[arg-type]
    merged = first.merged(second)
    _check(merged, rows)
    merged.add(*rows)
    _check(first, tuple(a[:cut] for a in rows))  # type: ignore[arg-type]
    _check(second, tuple(a[cut:] for a in rows))  # type: ignore[arg-type]


def test_the_rows_that_are_added_stay_as_they_are() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((6, 2)), random.standard_normal((6, 2)), random.integers(0, 3, 6)
    before = [array.copy() for array in rows]
    GroupMoments(3, 2).add(*rows)
    for array, kept in zip(rows, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_half_precision_is_summed_in_double() -> None:
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((3000, 2)).astype(np.float16) for _ in range(2))
    rows = x.astype(np.float64), y.astype(np.float64), random.integers(0, 2, 3000)
    moments = GroupMoments(_GROUPS, 2)
    moments.add(x, y, rows[2])
    _check(moments, rows)
