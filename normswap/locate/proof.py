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
from normswap.graph.graph import Array, Graph, Runner, Value

_TOLERANCE = 1e-9  # of the output's scale; float64 rounding through a dozen operators, with room
_LARGE, _TINY = 1e5, 1e-9
_ELEMENTS = 200_000  # of a probe; larger values are cut along their leading axes to fit
_WHOLE = 20_000_000  # elements at most (160 MB) of the check of the whole value
_ROWS = 8  # to fit with at least: a value with fewer is evaluated several times
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
    if shape is None or 0 in shape:
        return None
    try:
        region = graph.slice([entry], [exit_value], np.float64)
    except (NormswapError, ValueError):
        return None
    proof = _fitted(region, _bounded(shape)) or _fitted(region, shape)
    if proof is None or _bounded(shape) == shape:
        return proof
    # Fitted on fewer rows: the whole value has to agree too, as far as memory allows.
    whole = np.random.default_rng(1).standard_normal(_bounded(shape, _WHOLE))
    return proof if _agrees(region, whole, proof) else None


def _bounded(shape: tuple[int, ...], limit: int = _ELEMENTS) -> tuple[int, ...]:
    """``shape`` with its leading axes cut until it has at most ``limit`` elements."""
    sizes = list(shape)
    while np.prod(sizes) > limit and max(sizes[:-1], default=1) > 1:
        largest = sizes.index(max(sizes[:-1]))
        sizes[largest] = -(-sizes[largest] // 2)
    return tuple(sizes)


def _fitted(region: Runner, shape: tuple[int, ...]) -> Proof | None:
    """The constants from probes of ``shape``, several of them where it has few rows."""
    if np.prod(shape) > _WHOLE:
        return None
    repeats = max(1, -(-_ROWS // int(np.prod(shape[:-1]))))
    random = np.random.default_rng(0)
    unit = random.standard_normal((repeats, *shape))
    means = random.standard_normal((repeats, *shape[:-1], 1))
    large, tiny, plain = _LARGE * (unit + 3 * means), _TINY * unit, unit + 0.5 * means
    results = [_evaluated(region, probe) for probe in (large, tiny, plain)]
    y_large, y_tiny, y_plain = results
    if y_large is None or y_tiny is None or y_plain is None:
        return None
    weight, bias = _affine(_normalised(large, 0.0), y_large)
    epsilon = _epsilon(tiny, y_tiny, weight, bias)
    if epsilon is None:
        return None
    weight, bias = _affine(_normalised(plain, epsilon), y_plain)
    scale = float(np.abs(weight).max())
    proof = Proof(_round_off(weight, scale), _round_off(bias, scale), epsilon)
    checks = [(plain, y_plain), (large, y_large), (tiny, y_tiny)]
    return proof if all(_reproduces(proof, x, y) for x, y in checks) else None


def _evaluated(region: Runner, probes: Array) -> Array | None:
    """The region on each of ``probes``; None where it fails, changes the shape or overflows."""
    try:
        results = np.stack([region([probe])[0] for probe in probes])
    except (NormswapError, ValueError, TypeError, RuntimeError, IndexError):
        return None
    return results if results.shape == probes.shape and np.all(np.isfinite(results)) else None


def _agrees(region: Runner, x: Array, proof: Proof) -> bool:
    y = _evaluated(region, x[None])
    return y is not None and _reproduces(proof, x, y[0])


def _reproduces(proof: Proof, x: Array, y: Array) -> bool:
    error = np.abs(_normalised(x, proof.epsilon) * proof.weight + proof.bias - y).max()
    return bool(error <= _TOLERANCE * max(np.abs(y).max(), np.abs(proof.weight).max()))


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
