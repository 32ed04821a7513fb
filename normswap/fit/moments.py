"""Moments of channels from streaming sums: over everything, and within groups of rows.

Parts are merged by the formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances" (1979): no average of the variances of parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from normswap.graph.graph import Array

if TYPE_CHECKING:
    from normswap.fit.covariance import JointMoments

_ROUNDING = 2.0**-23  # of a constant, relative to it, in float32


def varies(variance: Array, mean: Array) -> Array:
    """Whether a variance is more than rounding around ``mean``; booleans."""
    return variance > np.square(_ROUNDING * mean)


class ChannelMoments:
    """Count, mean [C] and sum of squared deviations [C] in float64 over everything added."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)

    @property
    def variance(self) -> Array:
        """The biased variance, which BatchNorm normalises with."""
        return self._squares / self.count

    def add(self, array: Array, axis: int) -> None:
        """Adds all elements of ``array`` (any shape and float dtype); channels lie on ``axis``."""
        rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
        if len(rows):
            mean = rows.mean(0)
            self._merge(len(rows), mean, np.square(rows - mean).sum(0))

    def merged(self, other: ChannelMoments) -> ChannelMoments:
        """The moments of the elements of both."""
        both = ChannelMoments()
        for part in (self, other):
            if part.count:
                both._merge(part.count, part.mean, part._squares)
        return both

    def _merge(self, count: int, mean: Array, squares: Array) -> None:
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        between = np.square(delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self._squares = self._squares + squares + between
        self.count = total


class GroupMoments:
    """Moments of two values x and y [C] within each of G groups of rows, all in float64.

    ``count`` [G]; means, variances and covariances [G, C], biased (divided by the count), and 0
    where a group has no rows.
    """

    def __init__(self, groups: int, channels: int) -> None:
        self.count: Array = np.zeros(groups)
        self._means = np.zeros((2, groups, channels))  # of x, y
        self._products = np.zeros((3, groups, channels))  # of xx, yy, xy, centred in each group

    @classmethod
    def of_one_group(cls, moments: JointMoments) -> GroupMoments:
        """The moments of x and y [C] in a single group, from their joint moments."""
        one = cls(1, len(moments.x_mean))
        one.count[0] = moments.count
        one._means[:, 0] = moments.x_mean, moments.y_mean
        one._products[:, 0] = moments.xx.diagonal(), moments.yy, moments.xy.diagonal()
        return one

    def add(self, x: Array, y: Array, group: Array) -> None:
        """Adds rows: ``x`` and ``y`` [N, C] of any float dtype, ``group`` [N] integers."""
        if len(x) == 0:
            return
        x, y = x.astype(np.float64), y.astype(np.float64)
        present, own, counts = np.unique(group, return_inverse=True, return_counts=True)
        count = counts.astype(np.float64)
        # Sums by group as a product: many times as fast as np.add.reduceat.
        member = (own == np.arange(len(present))[:, None]).astype(np.float64)
        means = np.stack([member @ a / count[:, None] for a in (x, y)])
        x -= means[0][own]
        y -= means[1][own]
        products = np.stack([member @ a for a in (x * x, y * y, x * y)])
        self._merge(present, count, means, products)

    def merged(self, other: GroupMoments) -> GroupMoments:
        """The moments of the rows of both."""
        both = GroupMoments(*self._means.shape[1:])
        for part in (self, other):
            present = np.flatnonzero(part.count)
            sums = part._means[:, present], part._products[:, present]
            both._merge(present, part.count[present], *sums)
        return both

    def _merge(self, present: Array, count: Array, means: Array, products: Array) -> None:
        old = self.count[present]
        total = old + count
        delta = means - self._means[:, present]
        between = (old * count / total)[:, None]
        self.count[present] = total
        self._means[:, present] += delta * (count / total)[:, None]
        self._products[:, present] += products + between * delta[[0, 1, 0]] * delta[[0, 1, 1]]

    @property
    def x_mean(self) -> Array:
        return self._means[0]

    @property
    def y_mean(self) -> Array:
        return self._means[1]

    @property
    def x_variance(self) -> Array:
        return self._products[0] / np.maximum(self.count, 1)[:, None]

    @property
    def y_variance(self) -> Array:
        return self._products[1] / np.maximum(self.count, 1)[:, None]

    @property
    def covariance(self) -> Array:
        return self._products[2] / np.maximum(self.count, 1)[:, None]
