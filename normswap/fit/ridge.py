"""Ridge regression from streaming sums, its strength chosen by the error on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from normswap.errors import NormswapError
from normswap.fit.covariance import JointMoments
from normswap.fit.moments import varies
from normswap.fit.ridge_strength import (
    NO_ROWS,
    NOT_FINITE,
    STRENGTHS,
    Choice,
    best_strength,
    factored,
    mean_variance,
    solve,
)
from normswap.graph.graph import Array
from normswap.graph.tensors import to_torch

_TARGETS = 32  # at most that many are looked at to choose the strength

HeldOut = Callable[[], Iterable[tuple[Array, Array]]]
"""Gives the rows held out in parts, as often as it is asked: x [N, F] and y [N, C]."""


@dataclass(frozen=True)
class RidgeFit:
    """y = x @ weight + bias: [F, C] and [C] in float64; the strength, and the share that it left of
    the held-out rows' squares of y - x @ towards about its mean (nan where there were none), of
    those targets that were looked at."""

    weight: Array
    bias: Array
    strength: float
    held_out_error: float


class RidgeFits:
    """Ridge fits of several maps that are alike: each looks for its strength near the last one's.

    A fit minimises |y - x W - b|^2 + strength * v * |W - towards|^2 over the rows that are not held
    out, v the mean variance of the features. The strength is that of ``STRENGTHS`` with the least
    squared error on the rows held out, over 32 evenly spaced targets where there are more.
    """

    def __init__(self) -> None:
        self._near = len(STRENGTHS) // 2

    def fit(self, train: JointMoments, held_out: HeldOut, towards: Array) -> RidgeFit:
        """``train``: of the rows that are not held out; ``towards`` [F, C]: features that never
        vary keep its weights.

        Raises NormswapError if there are no rows to fit, or numbers that are not finite.
        """
        if not train.count:
            raise NormswapError(NO_ROWS)
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


def _solved(train: JointMoments, towards: Array, choice: Choice) -> tuple[Array, float]:
    """The weight [F, C] and its strength: the chosen one or, where the sums are too ill-conditioned
    for it, the next that will do."""
    variance = mean_variance(train)
    if variance <= 0:
        return towards.copy(), STRENGTHS[choice.index]
    factor = choice.factor
    for strength in STRENGTHS[choice.index :]:
        level = strength * variance
        factor = factored(train, level) if factor is None else factor
        if factor is not None:
            wanted = torch.from_numpy(train.xy + level * towards)
            return solve(factor, wanted).numpy(), strength
    raise NormswapError(NOT_FINITE)
