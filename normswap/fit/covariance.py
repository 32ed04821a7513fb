"""Means and covariances of features and targets together, from streaming sums merged exactly."""

from __future__ import annotations

import numpy as np

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
        x, y = x.astype(np.float64), y.astype(np.float64)
        x_mean, y_mean = x.mean(0), y.mean(0)
        x -= x_mean
        y -= y_mean
        self._merge(len(x), x_mean, y_mean, x.T @ x, x.T @ y, np.square(y).sum(0))

    def merged(self, other: JointMoments) -> JointMoments:
        """Those of the rows of both."""
        total = JointMoments(*self.xy.shape)
        for part in (self, other):
            total._merge(part.count, part.x_mean, part.y_mean, part.xx, part.xy, part.yy)
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

    def _merge(
        self, count: int, x_mean: Array, y_mean: Array, xx: Array, xy: Array, yy: Array
    ) -> None:
        if count == 0:
            return
        total = self.count + count
        dx, dy = x_mean - self.x_mean, y_mean - self.y_mean
        if self.count:  # new arrays: others may share the old ones
            between = self.count * count / total
            xx = xx + np.outer(between * dx, dx)
            xx += self.xx
            xy = xy + np.outer(between * dx, dy)
            xy += self.xy
            yy = yy + self.yy + between * np.square(dy)
        self.xx, self.xy, self.yy = xx, xy, yy
        self.x_mean = self.x_mean + dx * (count / total)
        self.y_mean = self.y_mean + dy * (count / total)
        self.count = total
