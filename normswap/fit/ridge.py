"""Ridge regression from streaming sums, its strength chosen by the error on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from normswap import distributed
from normswap.errors import NormswapError
from normswap.fit.calibration import over_processes
from normswap.fit.covariance import JointMoments, empty
from normswap.fit.moments import ChannelMoments, varies
from normswap.graph.graph import Array
from normswap.graph.tensors import to_torch

# Of the features' mean variance. Hoerl and Kennard, "Ridge Regression" (1970).
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
_TARGETS = 32  # at most that many are used to choose the strength
_POWERS = 3  # of the inverse at a pole
_NO_ROWS = "a ridge fit needs rows to fit and rows to hold out"
_NOT_FINITE = "a ridge fit met activations that are not finite or far too large"

HeldOut = Callable[[], Iterable[tuple[Array, Array]]]
"""Called as often as needed, gives the rows held out in parts: x [N, F] and y [N, C]."""

CentredRows = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]
"""The same in float64, less the means of the rows to fit."""


@dataclass(frozen=True)
class RidgeFit:
    """y = x @ weight + bias: [F, C] and [C] in float64.

    ``held_out_error``: the share of the squares of y - x @ towards, about its mean, that is left
    on the rows held out, over the targets that chose the ``strength``; nan where they are all 0.
    """

    weight: Array
    bias: Array
    strength: float
    held_out_error: float


class RidgeFits:
    """Ridge fits of similar maps: each begins its search for a strength at that of the last one.

    A fit minimises |y - x W - b|^2 + strength * v * |W - towards|^2 over the rows that are not held
    out, v the mean variance of the features. The strength is that of ``STRENGTHS`` with the least
    squared error on the rows held out, over 32 evenly spaced targets where there are more.
    """

    def __init__(self) -> None:
        self._near = len(STRENGTHS) // 2

    def fit(self, train: JointMoments, held_out: HeldOut, towards: Array) -> RidgeFit:
        """The fit to ``train``, the moments of the rows that are not held out.

        ``towards`` [F, C]: features that never vary keep its weights.

        Raises NormswapError if there are no rows to fit, or numbers that are not finite.
        """
        if not train.count:
            raise NormswapError(_NO_ROWS)
        some = slice(None, None, -(-train.xy.shape[1] // _TARGETS))
        left = train.targets(some).residual(towards[:, some])

        def residual() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            x_mean, y_mean = train.x_mean, train.y_mean[some]
            for x, y in held_out():
                centred = to_torch(x).double() - torch.from_numpy(x_mean)
                explained = centred @ torch.from_numpy(towards[:, some])
                yield centred, to_torch(y[:, some]) - torch.from_numpy(y_mean) - explained

        choice = best_strength(left, residual, self._near)
        self._near = choice.index
        weight, strength = _solved(train, towards, choice)
        still = ~varies(train.xx.diagonal() / train.count, train.x_mean)
        weight[still] = towards[still]
        bias = train.y_mean - train.x_mean @ weight
        return RidgeFit(weight, bias, strength, choice.error)


def share_left_by(fit: RidgeFit, held_out: HeldOut) -> float:
    """The share of the variance of y that ``fit`` leaves on the rows held out; 0 where y does not
    vary."""
    left, y_sums = np.zeros(1), ChannelMoments()
    for x, y in held_out():
        off = y - (x.astype(np.float64) @ fit.weight + fit.bias)
        left += np.square(off).sum()
        y_sums.add(y, 1)
    y_sums = over_processes(y_sums)
    total = float(y_sums.variance.sum()) * y_sums.count if y_sums.count else 0.0
    return float(np.sum(distributed.gathered(left))) / total if total > 0 else 0.0


def _solved(train: JointMoments, towards: Array, choice: Choice) -> tuple[Array, float]:
    """The weight [F, C] and its strength: the chosen one or, where the sums are too ill-conditioned
    for it, the next larger one that works."""
    variance = _mean_variance(train)
    if variance <= 0:
        return towards.copy(), STRENGTHS[choice.index]
    factor = choice.factor
    for strength in STRENGTHS[choice.index :]:
        level = strength * variance
        factor = _factored(train, level) if factor is None else factor
        if factor is not None:
            wanted = torch.from_numpy(train.xy + level * towards)
            return _solve(factor, wanted).numpy(), strength
    raise NormswapError(_NOT_FINITE)


@dataclass(frozen=True)
class Choice:
    """An index of ``STRENGTHS``, the share of the held-out rows' squares that is left with it, and
    the Cholesky factor of the sums if there is one."""

    index: int
    error: float
    factor: torch.Tensor | None = None


def best_strength(train: JointMoments, held_out: CentredRows, near: int) -> Choice:
    """The strength with the least squared error on the rows held out.

    The solutions at all strengths are approximated within the span of (xx + pole)^-k xy, k = 1, 2,
    3: a rational Krylov subspace (Ruhe, "Rational Krylov sequence methods", 1984). It holds the
    solution at the pole and comes close to those around it, for one factorisation instead of one
    for each. The first is ``near``; more are added until the best strength is one, or next to one.
    """
    variance = _mean_variance(train)
    if variance <= 0:
        nothing = torch.zeros(len(train.xx), 1, dtype=torch.float64)
        return Choice(0, _errors(train, held_out, nothing, [1.0])[0])
    wanted = torch.from_numpy(np.ascontiguousarray(train.xy))
    errors = dict.fromkeys(range(len(STRENGTHS)), float("inf"))
    best = near
    poles: dict[int, torch.Tensor] = {}
    span: list[torch.Tensor] = []
    while all(abs(best - pole) > 1 for pole in poles):
        factor = _factored(train, STRENGTHS[best] * variance)
        if factor is None:  # nor for any weaker strength
            errors = {index: error for index, error in errors.items() if index > best}
            if not errors:
                return Choice(len(STRENGTHS) - 1, float("inf"))
        else:
            poles[best] = factor
            solved = wanted
            for _ in range(_POWERS):
                solved = _solve(factor, solved)
                span.append(solved)
            levels = [STRENGTHS[index] * variance for index in errors]
            left = _errors(train, held_out, torch.cat(span, 1), levels)
            errors = dict(zip(errors, left, strict=True))
        best = min(errors, key=errors.__getitem__)
    return Choice(best, errors[best], poles.get(best))


def _mean_variance(moments: JointMoments) -> float:
    """The mean variance of the features, times the number of rows."""
    return float(np.trace(moments.xx)) / len(moments.xx)


def _factored(moments: JointMoments, level: float) -> torch.Tensor | None:
    """The Cholesky factor [F, F] of xx + level; None where the sums are too ill-conditioned, or not
    finite."""
    factor = empty(*moments.xx.shape).mT  # LAPACK's order of columns: it works in place
    factor.copy_(torch.from_numpy(moments.xx).mT)
    factor.diagonal().add_(level)
    _, failed = torch.linalg.cholesky_ex(factor, out=(factor, torch.empty((), dtype=torch.int32)))
    return None if failed else factor


def _solve(factor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(L L^T)^-1 ``wanted`` [F, C] for L = ``factor``. torch.cholesky_solve copies the factor."""
    half = torch.linalg.solve_triangular(factor, wanted, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def _errors(
    train: JointMoments, held_out: CentredRows, span: torch.Tensor, levels: Sequence[float]
) -> list[float]:
    """The share of the held-out rows' squares that the solution at each of ``levels`` within
    ``span`` [F, K] leaves (nan where they are 0)."""
    basis = torch.linalg.qr(span)[0]
    values, turn = torch.linalg.eigh(basis.T @ (torch.from_numpy(train.xx) @ basis))
    basis = basis @ turn
    xy = basis.T @ torch.from_numpy(train.xy)
    own = _Within.of(torch.zeros(0, len(xy)).double(), torch.zeros(0, xy.shape[1]).double())
    for x, y in held_out():
        own = own.merged(_Within.of(x @ basis, y))
    held = over_processes(own)
    if not held.rows:
        raise NormswapError(_NO_ROWS)
    if not all(a.isfinite().all() for a in (held.xx, held.xy, held.squares)):
        raise NormswapError(_NOT_FINITE)
    errors: list[float] = []
    for level in levels:
        if float(values[0]) + level <= 0:  # the sums are too ill-conditioned
            errors.append(float("inf"))
            continue
        weight = xy / (values + level)[:, None]
        left = held.squares + torch.sum(weight * (held.xx @ weight - 2 * held.xy))
        errors.append(float(left / held.squares))
    return errors


class _Within(NamedTuple):
    """Sums over rows of x in a basis of K dimensions, and of y: their number, xx [K, K], xy [K, C]
    and the squares of y."""

    rows: int
    xx: torch.Tensor
    xy: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> _Within:
        return cls(len(x), x.T @ x, x.T @ y, y.square().sum())

    def merged(self, other: _Within) -> _Within:
        pairs: Any = zip(self, other, strict=True)
        return _Within(*(a + b for a, b in pairs))
