"""The constants of a BatchNorm that stands in for a LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normswap.fit.moments import ChannelMoments
from normswap.graph.graph import Array

_RELATIVE_EPSILON = 1e-6  # of the mean variance, so that a dead channel is not blown up


@dataclass(frozen=True)
class BatchNormConstants:
    """y = weight * (x - mean) / sqrt(variance + epsilon) + bias; arrays [C] in float64."""

    weight: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float


def copied(
    weight: Array | None, bias: Array | None, x: ChannelMoments, epsilon: float
) -> BatchNormConstants:
    """The LayerNorm's gamma and beta with the statistics of its input ``x``."""
    size = x.mean.shape
    gamma = np.ones(size) if weight is None else weight
    beta = np.zeros(size) if bias is None else bias
    return BatchNormConstants(gamma, beta, x.mean, x.variance, _floor(epsilon, x))


def matched_moments(
    weight: Array | None, x: ChannelMoments, y: ChannelMoments, epsilon: float
) -> BatchNormConstants:
    """Mean and variance of the output per channel equal the original LayerNorm's, ``y``.

    The sign is that of the LayerNorm's gamma, which moments cannot tell.
    """
    floor = _floor(epsilon, x)
    sign = np.ones(x.mean.shape) if weight is None else np.where(weight < 0, -1.0, 1.0)
    deviation = np.sqrt(y.variance)
    spread = np.sqrt(x.variance)
    alive = x.variance > 0
    ratio = np.sqrt(x.variance + floor) / np.where(alive, spread, 1.0)
    gamma = np.where(alive, sign * deviation * ratio, 0.0)
    return BatchNormConstants(gamma, y.mean, x.mean, x.variance, floor)


def identity(x: ChannelMoments, epsilon: float) -> BatchNormConstants:
    """The BatchNorm that changes nothing at evaluation: it undoes its own statistics."""
    gamma = np.sqrt(x.variance + epsilon)
    return BatchNormConstants(gamma, x.mean, x.mean, x.variance, epsilon)


def _floor(epsilon: float, x: ChannelMoments) -> float:
    floor = max(epsilon, _RELATIVE_EPSILON * float(x.variance.mean()))
    return float(f"{floor:.6g}")
