"""Means and covariances of features and targets together, from streaming sums merged exactly."""

from __future__ import annotations

import numpy as np
import torch

from normswap.graph.graph import Array


class JointMoments:
    """Over rows of features x [F] and targets y [C]: their number, means, the centred sums
    ``xx`` [F, F] and ``xy`` [F, C], and of y its squares ``yy`` [C]; all in float64.

    Parts are merged by the formula of Chan, Golub and LeVeque (1979) for covariances, so that
    neither a large mean nor the order of the parts costs digits.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.count = 0
        self.x_mean: Array = np.zeros(features)
        self.y_mean: Array = np.zeros(targets)
        self.xx: Array = np.zeros((features, features))
        self.xy: Array = np.zeros((features, targets))
        self.yy: Array = np.zeros(targets)

    def add(self, x: Array, y: Array) -> None:
        """Adds rows: ``x`` [N, F] and ``y`` [N, C] of any float dtype."""
        if len(x) == 0:
            return
        # What the merge adds for the distance of the means is one more row's products.
        rows_x, x_mean = _centred(x, self.count, self.x_mean)
        rows_y, y_mean = _centred(y, self.count, self.y_mean)
        xx, xy = rows_x.T @ rows_x, rows_x.T @ rows_y
        xx += self.xx
        xy += self.xy
        self.xx, self.xy = xx, xy  # new arrays: others may share the old ones
        self.yy = self.yy + np.square(rows_y).sum(0)
        self._shift(len(x), x_mean, y_mean)

    def merged(self, other: JointMoments) -> JointMoments:
        """Those of the rows of both."""
        total = JointMoments(*self.xy.shape)
        for part in (self, other):
            total._merge(part)
        return total

    def scaled(self, scale: Array, shift: Array) -> JointMoments:
        """Those of scale * x + shift and of y; ``scale`` and ``shift`` [F]."""
        new = JointMoments(*self.xy.shape)
        new.count, new.y_mean, new.yy = self.count, self.y_mean, self.yy
        new.x_mean = scale * self.x_mean + shift
        new.xx = self.xx * scale * scale[:, None]
        new.xy = self.xy * scale[:, None]
        return new

    def residual(self, weight: Array, bias: Array) -> JointMoments:
        """Those of x and of y - x weight - bias; ``weight`` [F, C], ``bias`` [C]."""
        left = JointMoments(*self.xy.shape)
        left.count, left.x_mean, left.xx = self.count, self.x_mean, self.xx
        left.y_mean = self.y_mean - self.x_mean @ weight - bias
        explained = self.xx @ weight
        left.xy = self.xy - explained
        left.yy = self.yy + np.sum(weight * (explained - 2 * self.xy), axis=0)
        return left

    def _merge(self, other: JointMoments) -> None:
        if other.count == 0:
            return
        total = self.count + other.count
        dx, dy = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        between = self.count * other.count / total * dx
        self.xx, self.xy = self.xx + other.xx, self.xy + other.xy
        for sums, d in ((self.xx, dx), (self.xy, dy)):
            torch.from_numpy(sums).addr_(torch.from_numpy(between), torch.from_numpy(d))
        self.yy = self.yy + other.yy + self.count * other.count / total * np.square(dy)
        self._shift(other.count, other.x_mean, other.y_mean)

    def _shift(self, count: int, x_mean: Array, y_mean: Array) -> None:
        """Moves the means towards those of ``count`` more rows."""
        self.count += count
        self.x_mean = self.x_mean + (x_mean - self.x_mean) * (count / self.count)
        self.y_mean = self.y_mean + (y_mean - self.y_mean) * (count / self.count)


def _centred(new: Array, count: int, mean: Array) -> tuple[Array, Array]:
    """The rows of ``new`` about their mean, and one for its distance from the ``mean`` of ``count``
    rows before; the mean too. In float64."""
    rows = torch.empty(len(new) + 1, new.shape[1], dtype=torch.float64)
    rows[:-1] = torch.from_numpy(new)
    new_mean = rows[:-1].mean(0)
    rows[:-1] -= new_mean
    share = count * len(new) / (count + len(new))
    rows[-1] = (new_mean - torch.from_numpy(mean)) * share**0.5
    return rows.numpy(), new_mean.numpy()
