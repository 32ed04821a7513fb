"""The floating-point formats of half the size: what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import BFLOAT16, Array
from normswap.graph.rounding import rounded


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    ``dtype``: of arrays in it. ``largest``: the largest finite number. ``smallest_normal``: the
    smallest with all ``mantissa_bits``. ``smallest``: the smallest that is not 0.
    """

    name: str
    dtype: np.dtype[Any]
    largest: float
    smallest_normal: float
    smallest: float
    mantissa_bits: int

    def rounded(self, array: Array) -> Array:
        """The array in float64, rounded to what the format holds."""
        return rounded(np.asarray(array, np.float64), self.dtype)


def _format(dtype: np.dtype[Any]) -> Format:
    info = ml_dtypes.finfo(dtype)
    return Format(
        dtype.name,
        dtype,
        float(info.max),
        float(info.smallest_normal),
        float(info.smallest_subnormal),
        int(info.nmant),
    )


FORMATS: dict[str, Format] = {
    found.name: found for found in map(_format, (np.dtype(np.float16), BFLOAT16))
}


def format_called(name: str) -> Format:
    """Raises NormswapError for a name that is none of ``FORMATS``."""
    if name not in FORMATS:
        raise NormswapError(f"the format '{name}' is neither {' nor '.join(FORMATS)}")
    return FORMATS[name]
