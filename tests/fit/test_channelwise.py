"""Each fit of a scale and shift per channel and group has the property it is named for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from normswap.fit.channelwise import (
    FITS,
    BatchNormConstants,
    ChannelFit,
    copied,
    identity,
    least_squares,
    matched_moments,
    safe_epsilon,
    with_statistics,
)
from normswap.fit.moments import GroupMoments
from normswap.norms.site import Site

_CHANNELS = 3
_DEAD = 2  # the channel whose input never varies


class _Data(NamedTuple):
    """Rows of a norm's input and output by group; every fifth is held out."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    groups: int

    def moments(self) -> tuple[GroupMoments, GroupMoments]:
        held = np.arange(len(self.x)) % 5 == 4
        parts = []
        for chosen in (~held, held):
            moments = GroupMoments(self.groups, self.x.shape[1])
            moments.add(self.x[chosen], self.y[chosen], self.group[chosen])
            parts.append(moments)
        return parts[0], parts[1]

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x[self.group == number], self.y[self.group == number]


def _data(groups: int = 1, rows: int = 100, seed: int = 0) -> _Data:
    """Groups with slopes and offsets of their own; the last channel's input never varies."""
    random = np.random.default_rng(seed)
    group = np.arange(rows) % groups
    slope = random.standard_normal((groups, _CHANNELS)) * [1, 5, 1]
    offset = 10 * random.standard_normal((groups, _CHANNELS))
    x = random.standard_normal((rows, _CHANNELS)) * (1 + group[:, None]) + offset[group]
    x[:, _DEAD] = offset[group, _DEAD]
    y = slope[group] * x + 0.5 * random.standard_normal((rows, _CHANNELS)) - offset[group]
    return _Data(x, y, group, groups)


def _site(**given: Any) -> Site:
    options: dict[str, Any] = {
        "name": "norm",
        "kind": "layer_norm",
        "axes": (1,),
        "normalized_shape": (_CHANNELS,),
        "epsilon": 1e-5,
        "weight": np.array([1.5, -2.0, 1.0]),
        "bias": np.array([0.1, 0.2, 0.3]),
        "input": "x",
        "output": "y",
        "spelling": "op",
    }
    return Site(**{**options, **given})


def _applied(fit: ChannelFit, data: _Data) -> np.ndarray:
    return fit.scale[data.group] * data.x + fit.shift[data.group]


@pytest.mark.parametrize("groups", [1, 3])
def test_copy_is_the_layer_norm_with_the_statistics_of_its_input(groups: int) -> None:
    data, site = _data(groups), _site(epsilon=1e-2)
    fit = copied(site, *data.moments())
    got = _applied(fit, data)
    for number in range(groups):
        x, chosen = data.of(number)[0], data.group == number
        expected = site.weight * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-2) + site.bias
        np.testing.assert_allclose(got[chosen], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
def test_copy_of_an_rms_norm_subtracts_no_mean(groups: int) -> None:
    data, site = _data(groups), _site(kind="rms_norm", epsilon=1e-2, bias=None)
    fit = copied(site, *data.moments())
    got = _applied(fit, data)
    for number in range(groups):
        x, chosen = data.of(number)[0], data.group == number
        expected = site.weight * x / np.sqrt(np.square(x).mean(0) + 1e-2)
        np.testing.assert_allclose(got[chosen], expected, rtol=1e-9, atol=1e-9)


def test_copy_of_a_norm_without_gamma_and_beta() -> None:
    data = _data()
    got = _applied(copied(_site(weight=None, bias=None), *data.moments()), data)
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(got.std(0)[:_DEAD], 1, rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 3])
def test_moments_are_those_of_the_original_in_every_group(groups: int) -> None:
    data = _data(groups)
    got = _applied(matched_moments(_site(), *data.moments()), data)
    for number in range(groups):
        y, part = data.of(number)[1], got[data.group == number]
        np.testing.assert_allclose(part.mean(0), y.mean(0), rtol=1e-9)
        np.testing.assert_allclose(part.std(0)[:_DEAD], y.std(0)[:_DEAD], rtol=1e-9)
        assert part.std(0)[_DEAD] < 1e-12  # nothing can be made of it but the mean


def test_moments_have_the_sign_of_gamma() -> None:
    data = _data()
    signs = np.sign(matched_moments(_site(), *data.moments()).scale[0])
    np.testing.assert_array_equal(signs, [1, -1, 0])
    signs = np.sign(matched_moments(_site(weight=None), *data.moments()).scale[0])
    np.testing.assert_array_equal(signs, [1, 1, 0])


def test_least_squares_is_least_squares() -> None:
    data = _data(rows=60)
    fit = least_squares(_site(), *data.moments())
    for channel in range(_DEAD):
        slope, offset = np.polyfit(data.x[:, channel], data.y[:, channel], 1)
        np.testing.assert_allclose(fit.scale[0, channel], slope, rtol=1e-9)
        np.testing.assert_allclose(fit.shift[0, channel], offset, rtol=1e-8, atol=1e-8)
    assert fit.scale[0, _DEAD] == 0
    np.testing.assert_allclose(fit.shift[0, _DEAD], data.y[:, _DEAD].mean())


def test_groups_that_differ_get_the_least_squares_of_each() -> None:
    """With many rows of slopes far apart nothing is gained by shrinking."""
    data = _data(groups=3, rows=3000)
    fit = least_squares(_site(), *data.moments())
    error = np.square(data.y - _applied(fit, data))
    for number in range(3):
        for channel in range(_DEAD):
            x, y = (a[:, channel] for a in data.of(number))
            best = np.polyfit(x, y, 1)
            least = np.square(y - np.polyval(best, x)).mean()
            assert error[data.group == number, channel].mean() <= least * (1 + 1e-4)


def test_groups_with_few_rows_lean_on_each_other() -> None:
    """Where all groups have one slope, it is nearer than what each group's few rows tell."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 10)
    x = random.standard_normal((200, _CHANNELS))
    y = 2 * x + random.standard_normal((200, _CHANNELS)) + group[:, None]
    data = _Data(x, y, group, 20)
    fit = least_squares(_site(), *data.moments())
    own = [np.polyfit(*(a[:, 0] for a in data.of(number)), 1)[0] for number in range(20)]
    assert np.abs(fit.scale[:, 0] - 2).max() < 0.5 * np.abs(np.array(own) - 2).max()
    error = np.square(data.y - _applied(fit, data))
    for number in range(20):  # the means are each group's own nevertheless
        chosen = group == number
        np.testing.assert_allclose((data.y - _applied(fit, data))[chosen].mean(0), 0, atol=1e-9)
    assert error.mean() < 1.5


@pytest.mark.parametrize("name", FITS)
def test_a_group_without_rows_gets_the_mean_of_the_others(name: str) -> None:
    full = _data(groups=2, rows=101)
    gap = full._replace(group=2 * full.group, groups=3)  # nothing falls into group 1
    fit = FITS[name](_site(), *gap.moments())
    whole = FITS[name](_site(), *full.moments())
    share = np.array([51, 50]) / 101
    for got, expected in ((fit.scale, whole.scale), (fit.shift, whole.shift)):
        np.testing.assert_allclose(got[[0, 2]], expected, rtol=1e-12)
        np.testing.assert_allclose(got[1], share @ expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_one_row_is_answered_with_a_finite_fit(name: str, kind: str) -> None:
    data = _Data(np.array([[1.0, -2.0, 0.0]]), np.array([[3.0, 4.0, 5.0]]), np.zeros(1, int), 1)
    site = _site(kind=kind)
    fit = FITS[name](site, *data.moments())
    assert np.isfinite(fit.scale).all()
    assert np.isfinite(fit.shift).all()
    if name != "copy":
        np.testing.assert_allclose(_applied(fit, data), data.y)
    elif kind == "layer_norm":  # a row alone is its own mean, so the norm leaves beta
        np.testing.assert_allclose(_applied(fit, data), [site.bias], rtol=1e-9)


@pytest.mark.parametrize("name", FITS)
def test_a_channel_that_never_varies_stays_finite_without_an_epsilon(name: str) -> None:
    data = _data()
    fit = FITS[name](_site(epsilon=0.0), *data.moments())
    got = _applied(fit, data)
    assert np.isfinite(got).all()
    if name != "copy":
        np.testing.assert_allclose(got[:, _DEAD], data.y[:, _DEAD].mean())


# -- BatchNorms -----------------------------------------------------------------------------------


def _apply(constants: BatchNormConstants, x: np.ndarray) -> np.ndarray:
    inverse = 1 / np.sqrt(constants.variance + constants.epsilon)
    return constants.weight * (x - constants.mean) * inverse + constants.bias


def test_identity_changes_nothing_whatever_the_epsilon() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2)) * [1, 0] + [0, 7]
    constants = identity(x.mean(0), x.var(0), 1e-2)
    np.testing.assert_allclose(_apply(constants, x), x, atol=1e-12)


def test_with_statistics_is_the_scale_and_shift_and_keeps_the_statistics() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)) * [1, 5, 0] + [0, 100, 2]
    scale, shift = np.array([2.0, -3.0, 0.5]), np.array([1.0, -1.0, 4.0])
    mean, variance = x.mean(0), x.var(0)
    constants = with_statistics(scale, shift, mean, variance, 1e-3)
    np.testing.assert_allclose(_apply(constants, x), scale * x + shift, atol=1e-10)
    np.testing.assert_array_equal(constants.mean, mean)
    np.testing.assert_array_equal(constants.variance, variance)


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
