"""The half-precision formats: what they hold, and what rounding to them does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.graph.rounding import rounded


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: what the command line calls it.
        dtype: numpy's, or that of ml_dtypes.
        largest: its largest finite number.
        smallest_normal: its smallest number that has all its digits.
        smallest: its smallest number above 0.
        mantissa_bits: the digits behind the binary point.

    Examples:
        >>> FORMATS["float16"].largest
        65504.0
    """

    name: str
    dtype: np.dtype[Any]
    largest: float
    smallest_normal: float
    smallest: float
    mantissa_bits: int

    def rounded(self, array: Array | float) -> Array:
        """The numbers of the format next to those of ``array`` (any shape and float dtype), as
        float64: infinity beyond the largest, 0 below half of the smallest."""
        return rounded(np.asarray(array, np.float64), self.dtype)


def _format(name: str, dtype: Any) -> Format:
    info = ml_dtypes.finfo(dtype)
    return Format(
        name,
        np.dtype(dtype),
        float(info.max),
        float(info.smallest_normal),
        float(info.smallest_subnormal),
        int(info.nmant),
    )


FORMATS: dict[str, Format] = {
    "float16": _format("float16", np.float16),
    "bfloat16": _format("bfloat16", ml_dtypes.bfloat16),
}


def format_called(name: str) -> Format:
    """The format of a name. Raises NormswapError for one that is none."""
    if name not in FORMATS:
        raise NormswapError(f"'{name}' is none of the formats {', '.join(FORMATS)}")
    return FORMATS[name]


def binary_places(magnitude: float, held_in: Format) -> float:
    """How many times ``magnitude`` may double before it is beyond what ``held_in`` holds; negative
    where it is already, infinite for 0.

    >>> binary_places(16376.0, FORMATS["float16"])
    2.0
    """
    if magnitude == 0:
        return math.inf
    return math.log2(held_in.largest) - math.log2(magnitude)


def halvings(magnitude: float, held_in: Format, headroom: float = 0) -> int:
    """The smallest k >= 0 with magnitude * 2^-k <= largest / 2^headroom.

    >>> halvings(65504.0, FORMATS["float16"], headroom=2)
    2
    """
    if magnitude == 0:
        return 0
    limit = held_in.largest * 2.0**-headroom
    k = max(0, math.ceil(math.log2(magnitude) - math.log2(limit)) - 1)
    while math.ldexp(magnitude, -k) > limit:  # the logarithms are rounded
        k += 1
    return k
