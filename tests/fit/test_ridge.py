"""Ridge regression from sums is that of the rows, at the strength that held-out rows favour."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from normswap.errors import NormswapError
from normswap.fit.covariance import JointMoments, JointSums
from normswap.fit.ridge import STRENGTHS, RidgeFit, RidgeFits, best_strength


class _Case(NamedTuple):
    """Rows to fit and rows held out, with the map and the noise that made the targets."""

    x: np.ndarray
    y: np.ndarray
    held_x: np.ndarray
    held_y: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def fit(self) -> RidgeFit:
        return RidgeFits().fit(self.train, self.held_out, np.zeros(self.weight.shape))

    @property
    def train(self) -> JointMoments:
        sums = JointSums(self.x.shape[1], self.y.shape[1])
        sums.add(self.x, self.y, np.ones(len(self.x), bool))
        return sums.moments()

    def held_out(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """In two parts."""
        half = len(self.held_x) // 2
        parts = slice(half), slice(half, None)
        return [(self.held_x[part], self.held_y[part]) for part in parts]

    def centred(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        x, y = self.held_x - self.x.mean(0), self.held_y - self.y.mean(0)
        return [(torch.from_numpy(x), torch.from_numpy(y))]


def _case(rows: int, features: int = 6, targets: int = 3, noise: float = 0.0) -> _Case:
    """Correlated features far from zero; a fifth as many rows again are held out."""
    random = np.random.default_rng(rows + features)
    mixing = random.standard_normal((features, features))
    weight, bias = random.standard_normal((features, targets)), random.standard_normal(targets)
    held = max(rows // 4, 1)
    x = random.standard_normal((rows + held, features)) @ mixing + 50
    y = x @ weight + bias + noise * random.standard_normal((rows + held, targets))
    return _Case(x[:rows], y[:rows], x[rows:], y[rows:], weight, bias)


def _solved(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression by its definition, as least squares with rows of their own for |W|^2."""
    centred, features = x - x.mean(0), x.shape[1]
    level = strength * np.square(centred).sum() / features
    rows = np.concatenate([centred, np.sqrt(level) * np.eye(features)])
    wanted = np.concatenate([y - y.mean(0), np.zeros((features, y.shape[1]))])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return weight, y.mean(0) - x.mean(0) @ weight


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("rows", [4, 30, 400])
def test_equals_scikit_learn_at_the_chosen_strength(rows: int, noise: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    case = _case(rows, noise=noise)
    fit = case.fit()
    x, y = case.x, case.y
    level = np.square(x - x.mean(0)).sum() / x.shape[1]
    ridge = linear_model.Ridge(alpha=fit.strength * level, solver="svd").fit(x, y)
    np.testing.assert_allclose(fit.weight, ridge.coef_.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.bias, ridge.intercept_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("rows", [4, 30, 400])
def test_the_chosen_strength_has_the_least_error_on_rows_held_out(rows: int, noise: float) -> None:
    case = _case(rows, noise=noise)
    errors = {s: np.square(case.held_y - case.held_x @ w - b).sum() for s, w, b in _all(case)}
    fit = case.fit()
    spread = np.square(case.held_y - case.y.mean(0)).sum()
    # Sums of squares near 0 have only the digits that their terms have.
    assert errors[fit.strength] <= min(errors.values()) * (1 + 1e-9) + 1e-9 * spread
    if spread > 0:
        expected = errors[fit.strength] / spread
        assert fit.held_out_error == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_every_one_of_many_targets_is_fitted() -> None:
    """Some of them are enough to choose the strength by, but not to fit to."""
    case = _case(60, targets=300, noise=3.0)
    fit = case.fit()
    weight, bias = _solved(case.x, case.y, fit.strength)
    np.testing.assert_allclose(fit.weight, weight, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.bias, bias, rtol=1e-6, atol=1e-6)
    errors = {s: np.square(case.held_y - case.held_x @ w - b).sum() for s, w, b in _all(case)}
    assert errors[fit.strength] <= 1.02 * min(errors.values())


def _all(case: _Case) -> list[tuple[float, np.ndarray, np.ndarray]]:
    return [(strength, *_solved(case.x, case.y, strength)) for strength in STRENGTHS]


def test_strengths_differ_with_the_noise() -> None:
    strengths = [_case(30, noise=noise).fit().strength for noise in (0.0, 1.0, 10.0, 1000.0)]
    assert strengths == sorted(strengths)
    assert len(set(strengths)) > 2


def test_recovers_a_map_without_noise() -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((300, 6)) + 50, random.standard_normal((6, 3))
    y = x @ weight + 7
    fit = _Case(x[:240], y[:240], x[240:], y[240:], weight, np.zeros(3)).fit()
    assert fit.strength == STRENGTHS[0]
    np.testing.assert_allclose(fit.weight, weight, atol=10 * STRENGTHS[0])
    np.testing.assert_allclose(fit.bias, 7, atol=5000 * STRENGTHS[0])  # the mean of x is 50
    assert fit.held_out_error < STRENGTHS[0]


def test_noise_alone_is_not_learnt() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((100, 40)), random.standard_normal((100, 3))
    fit = _Case(x[:80], y[:80], x[80:], y[80:], np.zeros((40, 3)), np.zeros(3)).fit()
    assert fit.strength >= 1
    unfit, _ = _solved(x, y, 1e-6)
    assert np.square(fit.weight).sum() < 0.05 * np.square(unfit).sum()


def test_fewer_rows_than_features() -> None:
    case = _case(5, features=40, noise=0.1)
    fit = case.fit()
    weight, bias = _solved(case.x, case.y, fit.strength)
    np.testing.assert_allclose(fit.weight, weight, atol=1e-6 * np.abs(weight).max())
    np.testing.assert_allclose(fit.bias, bias, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1])
def test_features_that_never_vary_get_no_weight(constant: float) -> None:
    case = _case(50, noise=1.0)
    x, held_x = case.x.copy(), case.held_x.copy()
    x[:, 2] = held_x[:, 2] = constant
    fit = case._replace(x=x, held_x=held_x).fit()
    np.testing.assert_allclose(fit.weight[2], 0, atol=1e-9)
    assert (np.abs(np.delete(fit.weight, 2, 0)) > 1e-3).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1])
def test_no_feature_varies(constant: float) -> None:
    case = _case(50, noise=1.0)
    x, held_x = np.full_like(case.x, constant), np.full_like(case.held_x, constant)
    fit = case._replace(x=x, held_x=held_x).fit()
    np.testing.assert_allclose(fit.weight * max(constant, 1), 0, atol=1e-6)
    np.testing.assert_allclose(fit.bias, case.y.mean(0), rtol=1e-6)


def test_targets_that_never_vary_need_no_weight() -> None:
    case = _case(50)
    y, held_y = np.full_like(case.y, 3.0), np.full_like(case.held_y, 3.0)
    fit = case._replace(y=y, held_y=held_y).fit()
    np.testing.assert_allclose(fit.weight, 0, atol=1e-12)
    np.testing.assert_allclose(fit.bias, 3)
    assert np.isnan(fit.held_out_error)  # nothing is a share of nothing


@pytest.mark.parametrize(("train", "held"), [(0, 5), (5, 0), (0, 0)])
def test_no_rows_is_an_error(train: int, held: int) -> None:
    case = _case(20)
    with pytest.raises(NormswapError, match="needs rows to fit and rows to hold out"):
        case._replace(
            x=case.x[:train], y=case.y[:train], held_x=case.x[:held], held_y=case.y[:held]
        ).fit()


@pytest.mark.parametrize("name", ["x", "held_x", "held_y"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_numbers_that_have_no_squares_are_an_error(value: float, name: str) -> None:
    case = _case(20, noise=1.0)
    array = getattr(case, name).copy()
    array[3, 1] = value
    with np.errstate(all="ignore"), pytest.raises(NormswapError, match="activations"):
        case._replace(**{name: array}).fit()


def test_shrinks_towards_what_it_is_told() -> None:
    """As the fit of what that map leaves, added to it."""
    case = _case(60, noise=3.0)
    towards = np.random.default_rng(1).standard_normal(case.weight.shape)
    fit = RidgeFits().fit(case.train, case.held_out, towards)
    left = case._replace(y=case.y - case.x @ towards, held_y=case.held_y - case.held_x @ towards)
    expected = left.fit()
    assert fit.strength == expected.strength
    assert fit.held_out_error == pytest.approx(expected.held_out_error)
    np.testing.assert_allclose(fit.weight, towards + expected.weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fit.bias, expected.bias, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_features_that_never_vary_keep_the_weights_they_had(constant: float) -> None:
    case = _case(50, noise=1.0)
    x, held_x = case.x.copy(), case.held_x.copy()
    x[:, 2] = held_x[:, 2] = constant
    towards = np.full(case.weight.shape, 7.0)
    changed = case._replace(x=x, held_x=held_x)
    fit = RidgeFits().fit(changed.train, changed.held_out, towards)
    np.testing.assert_array_equal(fit.weight[2], 7.0)


def _spread_out(rows: int, noise: float, seed: int = 0) -> _Case:
    """300 features of which a few carry most of the variance, so that the strengths differ."""
    random = np.random.default_rng(seed)
    scales = np.geomspace(1, 1e-3, 300)
    x = (
        random.standard_normal((rows, 300))
        * scales
        @ np.linalg.qr(random.standard_normal((300, 300)))[0]
    )
    weight = random.standard_normal((300, 4))
    y = x @ weight + noise * random.standard_normal((rows, 4))
    cut = rows * 4 // 5
    return _Case(x[:cut], y[:cut], x[cut:], y[cut:], weight, np.zeros(4))


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("rows", [200, 1000])
@pytest.mark.parametrize("near", range(0, len(STRENGTHS), 2))
def test_one_factorisation_tells_the_errors_at_all_strengths(
    rows: int, noise: float, near: int
) -> None:
    """The span has 12 of 300 dimensions; the strength that it finds is nearly the best one."""
    case = _spread_out(rows, noise)
    errors = [np.square(case.held_y - case.held_x @ w - b).sum() for _, w, b in _all(case)]
    choice = best_strength(case.train, case.centred, near)
    spread = np.square(case.held_y - case.y.mean(0)).sum()
    error = errors[choice.index]
    assert error <= 1.03 * min(errors) + 1e-6 * spread
    assert choice.error == pytest.approx(error / spread, rel=0.1, abs=1e-6)


def test_a_later_fit_finds_its_own_strength() -> None:
    fits = RidgeFits()
    for noise in (0.0, 100.0, 1e-3, 1.0):
        case = _spread_out(1000, noise)
        later, alone = fits.fit(case.train, case.held_out, np.zeros((300, 4))), case.fit()
        assert later.held_out_error <= 1.03 * alone.held_out_error + 1e-6


def test_sums_that_weak_strengths_cannot_solve() -> None:
    """What rounding makes of sums may be less than nothing in some direction; a stronger one is
    taken there, wherever the search begins."""
    case = _spread_out(200, 0.1)
    train = case.train
    broken = replace(train, xx=train.xx - 2e-3 * np.trace(train.xx) / 300 * np.eye(300))
    fits = RidgeFits()
    for _ in range(2):
        assert fits.fit(broken, case.held_out, np.zeros((300, 4))).strength > 1e-3
    for near in range(len(STRENGTHS)):
        choice = best_strength(broken, case.centred, near)
        assert STRENGTHS[choice.index] >= 1e-3  # it looks along a few directions only
        assert np.isfinite(choice.error)


def test_sums_that_no_strength_can_solve_are_an_error() -> None:
    case = _case(50)
    turned = replace(case.train, xx=case.train.xx - 1e9 * np.diag([1.0, 0, 0, 0, 0, -1.01]))
    with pytest.raises(NormswapError, match="not finite or far too large"):
        RidgeFits().fit(turned, case.held_out, np.zeros((6, 3)))
