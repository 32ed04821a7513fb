"""Ridge regression from streaming sums, its strength chosen by the error on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from normswap.errors import NormswapError
from normswap.fit.covariance import JointMoments
from normswap.fit.moments import varies
from normswap.graph.graph import Array

# Of the features' mean variance. Hoerl and Kennard, "Ridge Regression" (1970).
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
_TARGETS = 128  # at most that many are looked at to choose the strength


@dataclass(frozen=True)
class RidgeFit:
    """y = x @ weight + bias: [F, C] and [C] in float64; the strength, and the share of the
    targets' variance that it left on the held-out rows (nan where there was none), of those targets
    that were looked at."""

    weight: Array
    bias: Array
    strength: float
    held_out_error: float


def fit_ridge(train: JointMoments, held_out: JointMoments) -> RidgeFit:
    """Minimises |y - x W - b|^2 + strength * v * |W|^2, v the mean variance of the features.

    The strength is that of ``STRENGTHS`` with the least squared error on ``held_out`` (of every
    second one and then of the best one's neighbours; over 128 evenly spaced targets where there are
    more); W and b are then those of all rows together. The weight shrinks towards zero: fit the
    residual of what it is to shrink towards. Features that never vary get weight 0.
    Raises NormswapError if ``train`` or ``held_out`` has no rows.
    """
    if not train.count or not held_out.count:
        raise NormswapError("a ridge fit needs rows to fit and rows to hold out")
    some = slice(None, None, -(-train.xy.shape[1] // _TARGETS))
    errors: dict[int, float] = {}

    def error(index: int) -> float:
        if index not in errors:
            weight = _solve(train, STRENGTHS[index], some)
            errors[index] = float("inf")
            if weight is not None:
                errors[index] = _squared_error(train, held_out, weight, some)
        return errors[index]

    best = min(range(1, len(STRENGTHS), 2), key=error)
    best = min((best - 1, best, best + 1), key=error)
    total = train.merged(held_out)
    weight = _solve(total, STRENGTHS[best], slice(None))
    if weight is None:  # sums that are not finite
        raise NormswapError("a ridge fit met activations that are not finite or far too large")
    weight[~varies(total.xx.diagonal() / total.count, total.x_mean)] = 0
    spread = float(held_out.yy[some].sum())
    share = error(best) / spread if spread > 0 else float("nan")
    return RidgeFit(weight, total.y_mean - total.x_mean @ weight, STRENGTHS[best], share)


def _solve(moments: JointMoments, strength: float, targets: slice) -> Array | None:
    """The weight [F, targets]; None where the sums are too ill-conditioned for the strength."""
    wanted = moments.xy[:, targets]
    level = float(np.trace(moments.xx)) / len(moments.xx)
    if level <= 0:
        return np.zeros(wanted.shape)
    regular = torch.from_numpy(moments.xx.copy())
    regular.diagonal().add_(strength * level)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if failed:
        return None
    solution = torch.cholesky_solve(torch.from_numpy(np.ascontiguousarray(wanted)), factor)
    return solution.numpy()


def _squared_error(
    train: JointMoments, held_out: JointMoments, weight: Array, targets: slice
) -> float:
    """The sum over held-out rows of |y - x W - b|^2, b that of ``train``; from the sums alone."""
    shift = (held_out.y_mean - train.y_mean)[targets]
    offset = shift - (held_out.x_mean - train.x_mean) @ weight
    spread = held_out.yy[targets].sum() - 2 * np.sum(weight * held_out.xy[:, targets])
    spread += np.sum((held_out.xx @ weight) * weight)
    return float(spread + held_out.count * np.square(offset).sum())
