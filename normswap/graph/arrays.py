"""Dtypes of NumPy arrays, bfloat16 included (through ml_dtypes)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def is_floating(dtype: Any) -> bool:
    """Whether a numpy dtype is a floating-point one, bfloat16 included."""
    return np.issubdtype(dtype, np.floating) or np.dtype(dtype) == BFLOAT16
