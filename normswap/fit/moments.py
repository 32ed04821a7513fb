"""Per-channel mean and variance from streaming sums, merged exactly."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Array

_ROUNDING = 2.0**-23  # what float32 leaves of a constant, relative to it


def varies(variance: Array, mean: Array) -> Array:
    """Whether a variance is more than rounding around ``mean``; booleans."""
    return variance > np.square(_ROUNDING * mean)


class ChannelMoments:
    """Count, mean [C] and sum of squared deviations [C] in float64 over everything added.

    Batches are merged by the formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979): no average of per-batch variances.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)

    def add(self, array: Array, axis: int) -> None:
        """Adds all elements of ``array`` (any shape and float dtype); channels lie on ``axis``."""
        rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
        if len(rows) == 0:
            return
        mean = rows.mean(0)
        self._merge(len(rows), mean, np.square(rows - mean).sum(0))

    def merged(self, other: ChannelMoments) -> ChannelMoments:
        """Those of the elements of both."""
        both = ChannelMoments()
        for part in (self, other):
            if part.count:
                both._merge(part.count, part._mean, part._squares)
        return both

    def _merge(self, count: int, mean: Array, squares: Array) -> None:
        if self.count == 0:
            self.count, self._mean, self._squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self._mean
        between = np.square(delta) * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + squares + between
        self.count = total

    @property
    def mean(self) -> Array:
        return self._mean

    @property
    def variance(self) -> Array:
        """The biased variance, as BatchNorm normalises with."""
        return self._squares / self.count
