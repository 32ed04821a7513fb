"""The constants of a BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


def with_statistics(
    scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float
) -> BatchNormConstants:
    """The BatchNorm that computes ``scale * x + shift`` with the statistics of its input."""
    weight = scale * np.sqrt(variance + epsilon)
    return BatchNormConstants(weight, scale * mean + shift, mean, variance, epsilon)


def identity(mean: Array, variance: Array, epsilon: float) -> BatchNormConstants:
    """The BatchNorm that changes nothing at evaluation: it undoes its own statistics."""
    return with_statistics(np.ones_like(mean), np.zeros_like(mean), mean, variance, epsilon)


def safe_epsilon(epsilon: float, variance: Array) -> float:
    """``epsilon``, or one that a channel without variance can stand; six digits, as files have."""
    return float(f"{max(epsilon, _RELATIVE_EPSILON * float(variance.mean())):.6g}")
