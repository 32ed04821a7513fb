"""The strength of a ridge regression, chosen by the error on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from normswap.errors import NormswapError
from normswap.fit.covariance import JointMoments
from normswap.fit.memory import empty
from normswap.fit.processes import over_processes

# Of the features' mean variance. Hoerl and Kennard, "Ridge Regression" (1970).
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
_POWERS = 3  # of the inverse at a pole
NO_ROWS = "a ridge fit needs rows to fit and rows to hold out"
NOT_FINITE = "a ridge fit met activations that are not finite or far too large"

CentredRows = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]
"""Gives the rows held out in parts, as often as it is asked: x [N, F] and y [N, C] in float64, less
the means of the rows to fit."""


@dataclass(frozen=True)
class Choice:
    """Which of ``STRENGTHS``, the share of the held-out rows' squares that it leaves, and the
    factor of its sums where that was needed."""

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
    variance = mean_variance(train)
    if variance <= 0:
        nothing = torch.zeros(len(train.xx), 1, dtype=torch.float64)
        return Choice(0, _errors(train, held_out, nothing, [1.0])[0])
    wanted = torch.from_numpy(np.ascontiguousarray(train.xy))
    errors = dict.fromkeys(range(len(STRENGTHS)), float("inf"))
    best = near
    poles: dict[int, torch.Tensor] = {}
    span: list[torch.Tensor] = []
    while all(abs(best - pole) > 1 for pole in poles):
        factor = factored(train, STRENGTHS[best] * variance)
        if factor is None:  # nor is there one for any that is weaker
            errors = {index: error for index, error in errors.items() if index > best}
            if not errors:
                return Choice(len(STRENGTHS) - 1, float("inf"))
        else:
            poles[best] = factor
            solved = wanted
            for _ in range(_POWERS):
                solved = solve(factor, solved)
                span.append(solved)
            levels = [STRENGTHS[index] * variance for index in errors]
            found = _errors(train, held_out, torch.cat(span, 1), levels)
            errors = dict(zip(errors, found, strict=True))
        best = min(errors, key=errors.__getitem__)
    return Choice(best, errors[best], poles.get(best))


def mean_variance(moments: JointMoments) -> float:
    """Of the features, times the number of rows."""
    return float(np.trace(moments.xx)) / len(moments.xx)


def factored(moments: JointMoments, level: float) -> torch.Tensor | None:
    """The Cholesky factor [F, F] of xx + level; None where the sums are too ill-conditioned, or not
    finite."""
    factor = empty(*moments.xx.shape).mT  # LAPACK's order of columns: it works in place
    factor.copy_(torch.from_numpy(moments.xx).mT)
    factor.diagonal().add_(level)
    _, failed = torch.linalg.cholesky_ex(factor, out=(factor, torch.empty((), dtype=torch.int32)))
    return None if failed else factor


def solve(factor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(L L^T)^-1 ``wanted`` [F, C] for L = ``factor``. torch.cholesky_solve copies the factor."""
    half = torch.linalg.solve_triangular(factor, wanted, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def _errors(
    train: JointMoments, held_out: CentredRows, span: torch.Tensor, levels: Sequence[float]
) -> list[float]:
    """For the solution at each of ``levels`` within ``span`` [F, K] the share that it leaves of the
    held-out rows' squares (nan where these are 0)."""
    basis = torch.linalg.qr(span)[0]
    values, turn = torch.linalg.eigh(basis.T @ (torch.from_numpy(train.xx) @ basis))
    basis = basis @ turn
    xy = basis.T @ torch.from_numpy(train.xy)
    held = over_processes(_Within.of(basis, held_out, xy.shape[1]))
    if not held.count:
        raise NormswapError(NO_ROWS)
    if not all(a.isfinite().all() for a in (held.xx, held.xy, held.squares)):
        raise NormswapError(NOT_FINITE)
    errors: list[float] = []
    for level in levels:
        if float(values[0]) + level <= 0:  # that the sums are too ill-conditioned for
            errors.append(float("inf"))
            continue
        weight = xy / (values + level)[:, None]
        left = held.squares + torch.sum(weight * (held.xx @ weight - 2 * held.xy))
        errors.append(float(left / held.squares))
    return errors


@dataclass(frozen=True)
class _Within:
    """Of rows within a basis of K dimensions: their number, xx [K, K], xy [K, C], and of y the sum
    of squares."""

    count: int
    xx: torch.Tensor
    xy: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, basis: torch.Tensor, rows: CentredRows, targets: int) -> _Within:
        none = torch.zeros(0, basis.shape[1]).double(), torch.zeros(0, targets).double()
        total = cls._of(*none)
        for x, y in rows():
            total = total.merged(cls._of(x @ basis, y))
        return total

    @classmethod
    def _of(cls, x: torch.Tensor, y: torch.Tensor) -> _Within:
        return cls(len(x), x.T @ x, x.T @ y, y.square().sum())

    def merged(self, other: _Within) -> _Within:
        return _Within(
            self.count + other.count,
            self.xx + other.xx,
            self.xy + other.xy,
            self.squares + other.squares,
        )
