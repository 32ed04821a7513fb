"""Rounding to the floating-point formats of half the size."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from normswap.graph.graph import BFLOAT16, Array

HALVES = (np.dtype(np.float16), BFLOAT16)
STANDS_FOR_INFINITY = 1e9
"""Constants from here on that a format does not hold are not weights: they stand for infinity, such
as what is added to the logits of masked tokens."""
_AT_ONCE = 1 << 20  # numbers
_STICKY = np.uint64((1 << 29) - 1)  # the bits that float64 has and float32 lacks


def is_half(dtype: Any) -> bool:
    """Whether a dtype is one of these formats."""
    return dtype is not None and np.dtype(dtype) in HALVES


def rounded(array: Array, dtype: Any) -> Array:
    """A float64 array with every number rounded to what ``dtype`` holds: to the nearest, ties to
    even; what is too large is infinite, what is too small is subnormal or 0."""
    with np.errstate(all="ignore"):
        if np.dtype(dtype) == BFLOAT16:
            array = _odd_single(array)  # or numbers would be rounded twice
        return array.astype(dtype).astype(np.float64)


def as_half(array: Array, dtype: Any) -> Array:
    """A constant as a model in ``dtype`` holds it: rounded, but a finite number that only stands
    for infinity is the largest finite number, since 0 times it has to stay 0.

    Takes the memory of the result, and of a part of it in float64.
    """
    array = np.asarray(array)
    half = np.empty(array.shape, dtype)
    flat, place = array.reshape(-1), half.reshape(-1)
    most = float(ml_dtypes.finfo(dtype).max)
    for start in range(0, flat.size, _AT_ONCE):
        part = np.asarray(flat[start : start + _AT_ONCE], np.float64)
        stands = (np.abs(part) >= STANDS_FOR_INFINITY) & np.isfinite(part)
        if stands.any():
            part = np.where(stands, np.clip(part, -most, most), part)
        place[start : start + _AT_ONCE] = rounded(part, dtype).astype(dtype)
    return half


def _odd_single(array: Array) -> Array:
    """In float32, rounded to odd: rounded once more, to fewer bits, it is as if rounded once."""
    bits = np.array(array, np.float64, order="C").view(np.uint64)
    lost = (bits & _STICKY) != 0
    kept = (bits & ~_STICKY) | (lost.astype(np.uint64) << np.uint64(29))
    odd = np.where(np.isfinite(array), kept, bits).view(np.float64)
    return np.asarray(odd, np.float32)
