"""Ridge regression from sums is that of the rows, at the strength that held-out rows favour."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from normswap.errors import NormswapError
from normswap.fit.covariance import JointMoments
from normswap.fit.ridge import STRENGTHS, RidgeFit, fit_ridge


class _Case(NamedTuple):
    """Rows to fit and rows held out, with the map and the noise that made the targets."""

    x: np.ndarray
    y: np.ndarray
    held_x: np.ndarray
    held_y: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def fit(self) -> RidgeFit:
        return fit_ridge(_moments(self.x, self.y), _moments(self.held_x, self.held_y))

    @property
    def together(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([self.x, self.held_x]), np.concatenate([self.y, self.held_y])


def _moments(x: np.ndarray, y: np.ndarray) -> JointMoments:
    moments = JointMoments(x.shape[1], y.shape[1])
    moments.add(x, y)
    return moments


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
    x, y = case.together
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
    spread = np.square(case.held_y - case.held_y.mean(0)).sum()
    # Sums of squares near 0 have only the digits that their terms have.
    assert errors[fit.strength] <= min(errors.values()) * (1 + 1e-9) + 1e-9 * spread
    if spread > 0:
        expected = errors[fit.strength] / spread
        assert fit.held_out_error == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_every_one_of_many_targets_is_fitted() -> None:
    """Some of them are enough to choose the strength by, but not to fit to."""
    case = _case(60, targets=300, noise=3.0)
    fit = case.fit()
    weight, bias = _solved(*case.together, fit.strength)
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
    fit = fit_ridge(_moments(x[:240], y[:240]), _moments(x[240:], y[240:]))
    assert fit.strength == STRENGTHS[0]
    np.testing.assert_allclose(fit.weight, weight, atol=10 * STRENGTHS[0])
    np.testing.assert_allclose(fit.bias, 7, atol=5000 * STRENGTHS[0])  # the mean of x is 50
    assert fit.held_out_error < STRENGTHS[0]


def test_noise_alone_is_not_learnt() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((100, 40)), random.standard_normal((100, 3))
    fit = fit_ridge(_moments(x[:80], y[:80]), _moments(x[80:], y[80:]))
    assert fit.strength >= 1
    unfit, _ = _solved(x, y, 1e-6)
    assert np.square(fit.weight).sum() < 0.05 * np.square(unfit).sum()


def test_fewer_rows_than_features() -> None:
    case = _case(5, features=40, noise=0.1)
    fit = case.fit()
    weight, bias = _solved(*case.together, fit.strength)
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
    np.testing.assert_allclose(fit.bias, case.together[1].mean(0), rtol=1e-6)


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
        fit_ridge(_moments(case.x[:train], case.y[:train]), _moments(case.x[:held], case.y[:held]))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_numbers_that_have_no_squares_are_an_error(value: float) -> None:
    case = _case(20, noise=1.0)
    x = case.x.copy()
    x[3, 1] = value
    with np.errstate(all="ignore"), pytest.raises(NormswapError, match="activations"):
        case._replace(x=x).fit()
