"""The numeric proof that a region computes a LayerNorm, and the constants that it does it with.

``y = gamma * (x - mean(x)) / sqrt(var(x) + epsilon) + beta`` over the last axis, biased variance.
The region is evaluated in float64 on three probes: at a large scale with large row means epsilon
vanishes, and gamma and beta follow by least squares; at a tiny scale epsilon follows; at unit scale
the formula with these constants has to reproduce the region to float64 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Value

_TOLERANCE = 1e-9  # of the output's scale; float64 rounding through a dozen operators, with room
_LARGE, _TINY = 1e5, 1e-9
_ELEMENTS = 2_000_000  # of a probe; a proof on larger values is made on as many
_EPSILON_DIGITS = 7


@dataclass(frozen=True)
class Proof:
    """Constants of a proven LayerNorm: ``weight`` and ``bias`` [C] in float64."""

    weight: Array
    bias: Array
    epsilon: float

    @property
    def is_plain_weight(self) -> bool:
        return bool(np.all(self.weight == 1))

    @property
    def is_plain_bias(self) -> bool:
        return bool(np.all(self.bias == 0))


def prove_layer_norm(graph: Graph, entry: Value, exit_value: Value) -> Proof | None:
    """The constants of the LayerNorm from ``entry`` to ``exit_value``; None if it is no such.

    A region that cannot be evaluated (an operator without a float64 implementation, a shape that
    does not fit) is no proof either.
    """
    shape = entry.shape
    if shape is None or np.prod(shape) > _ELEMENTS or np.prod(shape[:-1]) < 2:
        return None
    random = np.random.default_rng(0)
    unit = random.standard_normal(shape)
    means = random.standard_normal((*shape[:-1], 1))
    try:
        region = graph.slice([entry], [exit_value], np.float64)
        large = _LARGE * (unit + 3 * means)
        tiny = _TINY * unit
        y_large, y_tiny = region([large])[0], region([tiny])[0]
        plain = unit + 0.5 * means
        y_plain = region([plain])[0]
    except (NormswapError, ValueError, TypeError, RuntimeError, IndexError):
        return None
    if not all(y.shape == shape and np.all(np.isfinite(y)) for y in (y_large, y_tiny, y_plain)):
        return None
    weight, bias = _affine(_normalised(large, 0.0), y_large)
    epsilon = _epsilon(tiny, y_tiny, weight, bias)
    if epsilon is None:
        return None
    weight, bias = _affine(_normalised(plain, epsilon), y_plain)
    scale = float(np.abs(weight).max())
    weight, bias = _round_off(weight, scale), _round_off(bias, scale)
    for x, y in [(plain, y_plain), (large, y_large), (tiny, y_tiny)]:
        error = np.abs(_normalised(x, epsilon) * weight + bias - y).max()
        if error > _TOLERANCE * max(np.abs(y).max(), np.abs(weight).max()):
            return None
    return Proof(weight, bias, epsilon)


def _normalised(x: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon)


def _affine(normalised: Array, y: Array) -> tuple[Array, Array]:
    """Per-channel least squares ``y = weight * normalised + bias`` over all rows."""
    rows = normalised.reshape(-1, normalised.shape[-1])
    targets = y.reshape(rows.shape)
    centred = rows - rows.mean(0)
    weight = (centred * (targets - targets.mean(0))).sum(0) / np.square(centred).sum(0)
    return weight, targets.mean(0) - weight * rows.mean(0)


def _epsilon(x: Array, y: Array, weight: Array, bias: Array) -> float | None:
    """From rows whose variance is far below it: (y - bias) = weight * centred / sqrt(v + e)."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = weight * centred
    inverse = ((y - bias) * scaled).sum(-1) / np.square(scaled).sum(-1)
    if not np.all(np.isfinite(inverse)) or np.any(inverse <= 0):
        return None
    found = float(np.median(1 / np.square(inverse) - np.square(centred).mean(-1)))
    return float(f"{found:.{_EPSILON_DIGITS - 1}e}") if found > 0 else None


def _round_off(constants: Array, scale: float) -> Array:
    """Constants that are float32 numbers up to float64 rounding are those numbers."""
    single = constants.astype(np.float32).astype(np.float64)
    slack = 1e-10 * np.maximum(np.abs(constants), 1e-2 * scale)
    return np.where(
        np.abs(constants) <= slack,
        0.0,
        np.where(np.abs(single - constants) <= slack, single, constants),
    )
