"""Means and covariances of features and targets together, from streaming sums merged exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from normswap.fit.calibration import over_processes
from normswap.graph.graph import Array
from normswap.graph.tensors import to_torch

_ROWS = 2048  # summed at once: with fewer the products are slow, more take memory
_BLOCK = 256  # features whose products are computed at once

Parts = Callable[[], Iterable[tuple[Array, Array, Array]]]
"""Called as often as needed, gives rows in parts: x [N, F] and y [N, C], of any float dtype, and
which of them are held out [N]."""


def empty(*shape: int) -> torch.Tensor:
    """An uninitialised float64 tensor in numpy's memory, which asks the system for huge pages:
    touching it for the first time takes half as long."""
    return torch.from_numpy(np.empty(shape))


@dataclass(frozen=True)
class JointMoments:
    """Moments of rows of features x [F] and targets y [C]: their number and means, the centred sums
    ``xx`` [F, F] and ``xy`` [F, C], and the squares ``yy`` [C] of y; all in float64."""

    count: int
    x_mean: Array
    y_mean: Array
    xx: Array
    xy: Array
    yy: Array

    def merged(self, other: JointMoments) -> JointMoments:
        """The moments of the rows of both, by the formula of Chan, Golub and LeVeque (1979)."""
        if not self.count or not other.count:
            return self if self.count else other
        total = self.count + other.count
        dx, dy = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        share = other.count / total
        between = torch.from_numpy(self.count * share * dx)
        xx, xy = (
            torch.add(torch.from_numpy(a), torch.from_numpy(b), out=empty(*a.shape))
            .addr_(between, torch.from_numpy(d))
            .numpy()
            for a, b, d in ((self.xx, other.xx, dx), (self.xy, other.xy, dy))
        )
        yy = self.yy + other.yy + self.count * share * np.square(dy)
        means = self.x_mean + dx * share, self.y_mean + dy * share
        return JointMoments(total, *means, xx, xy, yy)

    def scaled(self, scale: Array, shift: Array) -> JointMoments:
        """The moments of scale * x + shift and y; ``scale`` and ``shift`` [F]."""
        return replace(
            self,
            x_mean=scale * self.x_mean + shift,
            xx=self.xx * scale * scale[:, None],
            xy=self.xy * scale[:, None],
        )

    def targets(self, chosen: slice) -> JointMoments:
        """The moments of x and some of the targets."""
        return replace(self, y_mean=self.y_mean[chosen], xy=self.xy[:, chosen], yy=self.yy[chosen])

    def residual(self, weight: Array) -> JointMoments:
        """The moments of x and y - x weight; ``weight`` [F, C]."""
        explained = (torch.from_numpy(self.xx) @ torch.from_numpy(weight)).numpy()
        return replace(
            self,
            y_mean=self.y_mean - self.x_mean @ weight,
            xy=self.xy - explained,
            yy=self.yy + np.sum(weight * (explained - 2 * self.xy), axis=0),
        )


def held_out_rows(parts: Parts) -> Iterator[tuple[Array, Array]]:
    """x and y of the rows of this process that are held out."""
    for x, y, held_out in parts():
        yield x[held_out], y[held_out]


def joint_moments(parts: Parts, features: int, targets: int) -> JointMoments:
    """The moments of the rows of all processes that are not held out."""
    sums = JointSums(features, targets)
    for x, y, held_out in parts():
        sums.add(x, y, ~held_out)
    return over_processes(sums.moments())


class JointSums:
    """Adds up rows of ``features`` and ``targets`` to their joint moments.

    The parts that are added are merged by the formula of Chan, Golub and LeVeque (1979) for
    covariances, so that neither a large mean nor the order of the parts costs digits. Takes
    F * (F + C) float64 numbers, and two thousand rows.
    """

    def __init__(self, features: int, targets: int) -> None:
        self._features = features
        self._count = 0
        self._mean = empty(features + targets).zero_()
        # Of features with features and targets; on the left only from each block's start on.
        self._products = empty(features, features + targets).zero_()
        self._squares = empty(targets).zero_()
        self._rows = empty(_ROWS + 1, features + targets)
        self._waiting = 0

    def add(self, x: Array, y: Array, chosen: Array) -> None:
        """Adds the rows of ``x`` [N, F] and ``y`` [N, C], of any float dtype, that are ``chosen``
        [N] (booleans)."""
        for start, stop in _runs(chosen).tolist():
            while start < stop:
                count = min(stop - start, _ROWS - self._waiting)
                place = self._rows[self._waiting : self._waiting + count]
                place[:, : self._features] = to_torch(x[start : start + count])
                place[:, self._features :] = to_torch(y[start : start + count])
                start += count
                self._waiting += count
                if self._waiting == _ROWS:
                    self._sum_waiting()

    def moments(self) -> JointMoments:
        """The moments of all rows. They reuse the sums' memory, so no row can be added after."""
        self._sum_waiting()
        self._rows = torch.empty(1, 0)
        features, products = self._features, self._products
        for start in range(0, features, _BLOCK):
            stop = min(start + _BLOCK, features)
            products[stop:, start:stop] = products[start:stop, stop:features].T
        means, sums = self._mean.numpy(), products.numpy()
        return JointMoments(
            self._count,
            means[:features],
            means[features:],
            sums[:, :features],
            sums[:, features:],
            self._squares.numpy(),
        )

    def _sum_waiting(self) -> None:
        count = self._waiting
        if not count:
            return
        rows = self._rows[: count + 1]
        mean = rows[:count].mean(0)
        rows[:count] -= mean
        # What the merge adds for the distance of the means equals the products of one more row.
        distance = mean - self._mean
        rows[count] = distance * (self._count * count / (self._count + count)) ** 0.5
        for start in range(0, self._features, _BLOCK):
            block = rows[:, start : min(start + _BLOCK, self._features)]
            self._products[start : start + _BLOCK, start:].addmm_(block.T, rows[:, start:])
        self._squares += rows[:, self._features :].square().sum(0)
        self._count += count
        self._mean += distance * (count / self._count)
        self._waiting = 0


def _runs(chosen: Array) -> Array:
    """Where each run of True starts and ends: [R, 2]."""
    edges = np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], 1)
