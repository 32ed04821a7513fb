"""What an operator of ONNX yields, as numpy holds it."""

from __future__ import annotations

from typing import Any

import numpy as np

from normswap.graph.graph import is_floating

Result = Any
"""An array, a list of arrays (a sequence), or None (an empty optional)."""


def as_arrays(result: Result) -> Result:
    """A result with numpy's scalars as arrays, in sequences too."""
    if isinstance(result, list):
        return [as_arrays(item) for item in result]
    return result if result is None else np.asarray(result)


def in_double(result: Result) -> Result:
    """A result with everything that is floating in float64."""
    if isinstance(result, list):
        return [in_double(item) for item in result]
    if result is None:
        return None
    array = np.asarray(result)
    return array.astype(np.float64, copy=False) if is_floating(array.dtype) else array
