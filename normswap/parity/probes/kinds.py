"""The kinds of probes: how many rows, how long, and what floating inputs hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

from normswap.graph.graph import Array

ROWS: Final = 8  # of each kind; the batch where it is dynamic
EXTREMES: Final = ("large_values", "subnormal")
LENGTHS: Final = ("shorter", "longer")

_LARGE_MEAN = 100.0
_HUGE_MEAN = 1e4
_TINY_DEVIATION = 1e-3
_OUTLIER_FACTOR = 100.0
_LEAST_LARGE, _LARGEST = 5, 40  # powers of two; LayerNorm's squares stay finite in float32
_LARGEST_HALF = 14  # a quarter of float16's range

Fill = Callable[[np.random.Generator, tuple[int, ...], np.dtype[Any]], Array]


@dataclass(frozen=True)
class Kind:
    """``fill``: float64 numbers for a floating input of a shape and dtype. ``batch``: the size of
    dynamic batch axes. ``rows``: how many at least, all probes together. ``length``: what becomes
    of other dynamic axes. ``only_for``: which inputs a model must have for the kind to tell
    anything new."""

    fill: Fill
    batch: int = ROWS
    rows: int = ROWS
    length: Literal["same", "shorter", "longer"] = "same"
    only_for: Literal["all", "floats", "features", "images", "lengths"] = "floats"


def _per_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *(1 for _ in shape[1:]))


def _channel_axis(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) >= 4 else len(shape) - 1


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return np.asarray(rng.standard_normal(shape))


def _large_mean(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return _normal(rng, shape, dtype) + _LARGE_MEAN * rng.choice([-1.0, 1.0], _per_row(shape))


def _huge_mean(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return _normal(rng, shape, dtype) + _HUGE_MEAN * rng.choice([-1.0, 1.0], _per_row(shape))


def _tiny_variance(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return _TINY_DEVIATION * _normal(rng, shape, dtype)


def _constant(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    if not shape:
        return _normal(rng, shape, dtype)
    # Along channels it varies: a norm over equal numbers amplifies the rounding of their mean by
    # 1/sqrt(epsilon), which tells implementations apart that are both right. Zeros are exact.
    kept = (0, _channel_axis(shape))
    sizes = tuple(size if axis in kept else 1 for axis, size in enumerate(shape))
    array = np.array(np.broadcast_to(_normal(rng, sizes, dtype), shape))
    if len(array) > 1:
        array[0] = 0
    return array


def _outlier_channel(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    array = _normal(rng, shape, dtype)
    if not shape:
        return array
    axis = _channel_axis(shape)
    index = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    outlier = rng.integers(0, shape[axis], _per_row(shape))
    return np.where(index == outlier, _OUTLIER_FACTOR * array, array)


def _large_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    most = _LARGEST_HALF if dtype == np.float16 else _LARGEST
    powers = np.linspace(_LEAST_LARGE, most, shape[0] if shape else 1)
    return rng.uniform(-1, 1, shape) * np.exp2(powers).reshape(_per_row(shape))


def _subnormal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    # Half of them zeros, of either sign.
    return smallest * rng.uniform(-0.9, 0.9, shape) * rng.choice([-0.0, 0.0, 1.0, 1.0], shape)


KINDS: Final[dict[str, Kind]] = {
    "normal": Kind(_normal, only_for="all"),
    "batch_1": Kind(_normal, batch=1, only_for="all"),
    "large_mean": Kind(_large_mean),
    "tiny_variance": Kind(_tiny_variance),
    "constant": Kind(_constant, only_for="all"),
    "outlier_channel": Kind(_outlier_channel),
    "batch_3": Kind(_normal, batch=3, only_for="all"),
    "shorter": Kind(_normal, length="shorter", only_for="lengths"),
    "longer": Kind(_normal, batch=3, rows=3, length="longer", only_for="lengths"),
    "large_values": Kind(_large_values),
    "subnormal": Kind(_subnormal),
    "huge_mean": Kind(_huge_mean, only_for="features"),
    "pictures": Kind(_normal, only_for="images"),  # draw.py fills in the image input
}
