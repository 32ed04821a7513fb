"""Rounding what a pass has computed in float64, unless the model's dtype cannot hold it.

A number too large becomes infinite; one below the smallest normal number keeps fewer digits than
the dtype has, or none. Both happen where half precision takes up the scale of a norm, and neither
would show before the model runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from normswap.graph.graph import Array, contiguous
from normswap.passes.base import Refusal


class OutOfRange(Refusal):
    """The model's dtype does not hold the numbers that a weight would have."""


_EXACT = 1e-12  # what float64 itself rounds
_LOSES = 2.0  # times the rounding of normal numbers; the exact contract allows no more


def rounded(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """``array`` as ``dtype``. Raises OutOfRange, with the ``name`` of what is to hold it, where a
    number is not finite, or would not be."""
    if not np.all(np.isfinite(array)):
        raise OutOfRange(f"{name} would hold numbers that are not finite")
    with np.errstate(over="ignore"):
        result = contiguous(array, dtype)
    if not np.all(np.isfinite(result)):
        largest, limit = float(np.abs(array).max()), float(ml_dtypes.finfo(dtype).max)
        raise OutOfRange(f"{name} would hold {largest:.3g}, and {dtype} ends at {limit:.3g}")
    return result


def written(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """``array``, a fitted one, as ``dtype``. Raises OutOfRange, with the ``name`` of what is to
    hold it, where a number is not finite or all of them together lose precision."""
    if vanishes(array, dtype):
        everywhere = [tuple(range(array.ndim))]
        check_precision(array, np.abs(array), None, dtype=dtype, channels=everywhere, name=name)
    return rounded(array, dtype, name)


def check_held(
    array: Array, before: Array, dtype: np.dtype[Any], held_in: np.dtype[Any] | None, name: str
) -> None:
    """Raises OutOfRange unless ``dtype`` holds ``array`` without the loss of a bit, and ``held_in``
    as well as it held what was there ``before``: no further beyond its end, and with no more than
    twice the rounding error of all numbers together."""
    if held_in is None:
        return
    earlier = before.reshape((1,) * (array.ndim - before.ndim) + before.shape)
    lost = _lost(array, dtype) > _EXACT + 2 * _lost(earlier, dtype)
    if np.any(lost):
        size = float(np.abs(array[lost]).min())
        raise OutOfRange(f"{name} would hold {size:.1e}, of which {dtype} loses bits")
    if float(np.abs(before).max(initial=0)) <= float(_info(held_in).max):
        rounded(array, held_in, name)
    if vanishes(array, held_in):
        everywhere = [tuple(range(array.ndim))]
        check_precision(
            array, np.abs(array), earlier, dtype=held_in, channels=everywhere, name=name
        )


def _lost(array: Array, dtype: np.dtype[Any]) -> Array:
    """The share of each number that rounding takes."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(array.astype(dtype).astype(np.float64) - array)
    return np.asarray(error / np.where(array == 0, 1.0, np.abs(array)))


def vanishes(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether a number of it, but for 0, is below the smallest normal one of ``dtype``."""
    size = np.abs(array)
    return bool(np.any((size > 0) & (size < _info(dtype).smallest_normal)))


def check_precision(
    array: Array,
    terms: Array,
    before: Array | None,
    *,
    dtype: np.dtype[Any],
    channels: Iterable[tuple[int, ...]],
    name: str,
) -> None:
    """Raises OutOfRange where a channel of ``array`` would lose precision as ``dtype``.

    It would if its numbers together are rounded by more than twice what normal numbers are, and
    than those ``before`` were, in whose place they come. ``terms``: sums of the absolute values
    that the numbers of ``array`` are sums of, since what cancels has no precision to lose.
    ``channels``: the axes over which one channel lies, for each way to see the array's channels.
    ``name``: what is to hold the array.
    """
    usual = float(_info(dtype).eps) / 2
    for axes in channels:
        now, then = _rounding(array, terms, dtype, axes), np.asarray(usual)
        if before is not None:
            then = np.maximum(then, _rounding(before, np.abs(before), dtype, axes))
        if np.any(now > _LOSES * then):
            raise OutOfRange(
                f"{name} would hold numbers around {_worst(now, terms, axes):.1e}, where {dtype} "
                f"loses precision"
            )


def _rounding(array: Array, terms: Array, dtype: np.dtype[Any], axes: tuple[int, ...]) -> Array:
    """The rounding errors along ``axes``, at most, as a share of ``terms``."""
    info, size = _info(dtype), np.abs(array).astype(np.float64)
    errors = np.maximum(size * float(info.eps), float(info.smallest_subnormal)) / 2
    total = terms.astype(np.float64).sum(axes, keepdims=True)
    errors = np.where(size > 0, errors, 0.0).sum(axes, keepdims=True)
    return np.asarray(errors / np.where(total > 0, total, 1.0))


def _worst(rounding: Array, terms: Array, axes: tuple[int, ...]) -> float:
    sizes = np.broadcast_to(terms.max(axes, keepdims=True), rounding.shape)
    return float(sizes.reshape(-1)[int(np.argmax(rounding))])


def _info(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(dtype)
