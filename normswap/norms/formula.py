"""The closed formulas of the norms, and how their constants follow from values.

``y = weight * (x - mean(x)) / sqrt(var(x) + epsilon) + bias`` with the biased variance, or without
the mean and with the mean of squares (RMSNorm: Zhang and Sennrich 2019). Arrays are
``[probes, *shape]``; ``axes`` count from the value's own first axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array


@dataclass(frozen=True)
class Statistics:
    """The statistics that a norm takes.

    Attributes:
        axes: of the value, over which they are taken.
        centred: whether the mean is subtracted; else the mean of squares is the only statistic.
        groups: into how many groups the axis ``channels`` is divided first, for a GroupNorm.
    """

    axes: tuple[int, ...]
    centred: bool
    groups: int | None = None
    channels: int = 1

    def normalised(self, x: Array, epsilon: float) -> Array:
        """The norm of ``x`` without weight and bias, in the shape of ``x``."""
        values, axes = self._grouped(x)
        result = values - values.mean(axes, keepdims=True) if self.centred else values.copy()
        with np.errstate(all="ignore"):
            result /= np.sqrt(np.square(result).mean(axes, keepdims=True) + epsilon)
        return np.asarray(result.reshape(x.shape))

    def centre(self, x: Array) -> Array:
        values, axes = self._grouped(x)
        return (values - values.mean(axes, keepdims=True) if self.centred else values).reshape(
            x.shape
        )

    def mean_square(self, centred: Array) -> Array:
        """The mean of squares of each row: of ``centred``, what epsilon is added to."""
        values, axes = self._grouped(centred)
        return np.square(values).mean(axes)

    def row_sums(self, values: Array) -> Array:
        grouped, axes = self._grouped(values)
        return np.asarray(grouped.sum(axes))

    def _grouped(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        if self.groups is None:
            return x, tuple(axis + 1 for axis in self.axes)
        at = self.channels + 1
        inner = x.shape[at] // self.groups
        split = x.reshape(*x.shape[:at], self.groups, inner, *x.shape[at + 1 :])
        return split, tuple(axis for axis in range(2, split.ndim) if axis != at)


def fit_affine(normalised: Array, y: Array, over: tuple[int, ...]) -> tuple[Array, Array]:
    """Least squares ``y = weight * normalised + bias``, one pair per position of the axes ``over``.

    Of the shape of ``over``'s axes; NaN where the rows leave them open.
    """
    rows = (0, *(axis + 1 for axis in range(y.ndim - 1) if axis not in over))
    mean_z, mean_y = normalised.mean(rows, keepdims=True), y.mean(rows, keepdims=True)
    z, product = normalised - mean_z, y - mean_y
    with np.errstate(all="ignore"):
        product *= z
        np.square(z, out=z)
        weight = product.sum(rows, keepdims=True) / z.sum(rows, keepdims=True)
    bias = mean_y - weight * mean_z
    return weight.squeeze(rows), bias.squeeze(rows)


def spread(constants: Array, over: tuple[int, ...], rank: int) -> Array:
    """Constants over the axes ``over`` in the shape that they broadcast with ``[probes, ...]``."""
    sizes = iter(constants.shape)
    return constants.reshape(1, *(next(sizes) if axis in over else 1 for axis in range(rank)))


def fit_epsilon(statistics: Statistics, x: Array, y: Array, weight: Array, bias: Array) -> float:
    """From rows whose variance v is not far above it: y - bias = weight * centred / sqrt(v + e).

    ``weight`` and ``bias`` as ``spread`` gives them. NaN where the rows do not agree.
    """
    centred = statistics.centre(x)
    variance = statistics.mean_square(centred)
    scaled = weight * centred
    del centred  # it may be large
    with np.errstate(all="ignore"):
        squares = statistics.row_sums(np.square(scaled))
        used = squares > 0  # a row of zeros says nothing
        part = y - bias
        part *= scaled
        inverse, variance = (statistics.row_sums(part) / squares)[used], variance[used]
        found = 1 / np.square(inverse) - variance
    if not found.size or not np.all(np.isfinite(found)) or np.any(inverse <= 0):
        return float("nan")
    epsilon = float(np.median(found))
    return 0.0 if abs(epsilon) < 1e-6 * float(np.median(variance)) else epsilon


@dataclass(frozen=True)
class Norm:
    """A proven norm, as a function of [probes, *shape].

    Attributes:
        kind: one of ``site.KINDS``.
        statistics: what it takes of its input.
        over: the axes that ``weight`` and ``bias`` depend on, in float64 and of these axes' sizes.
        epsilon: what is added under the root.
    """

    kind: str
    statistics: Statistics
    over: tuple[int, ...]
    weight: Array
    bias: Array
    epsilon: float

    @property
    def is_plain_weight(self) -> bool:
        return bool(np.all(self.weight == 1))

    @property
    def is_plain_bias(self) -> bool:
        return bool(np.all(self.bias == 0))

    def __call__(self, x: Array) -> Array:
        rank = x.ndim - 1
        weight, bias = (spread(a, self.over, rank) for a in (self.weight, self.bias))
        y = self.statistics.normalised(x, self.epsilon)  # a new array, which may be large
        y *= weight
        y += bias
        return y
