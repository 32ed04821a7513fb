"""Arrays that may be larger than memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array

IN_MEMORY = 1 << 30
"""Bytes; arrays of more are mapped from a temporary file."""
_AT_ONCE = 1 << 26


def new_array(where: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array to be filled: in memory, or above 1 GiB mapped from a file in the temporary folder.

    The file has no name of its own and goes away with the array, however the process ends. Raises
    NormswapError, which begins with ``where``, if there is no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                # A full disk is an error here and now, not a crash when a page is written.
                os.posix_fallocate(file.fileno(), 0, size)
            # The mapping outlives the file object. Without the subclass, slices are plain arrays.
            return np.asarray(np.memmap(file, dtype, "r+", shape=tuple(shape)))
    except OSError as error:
        raise NormswapError(
            f"{where}: takes {size / (1 << 30):.1f} GiB as arrays, and {tempfile.gettempdir()} has "
            f"no room for it ({error.strerror or error}); take fewer samples, or set TMPDIR to "
            "another folder"
        ) from error


def chunks(array: Array) -> Iterator[slice]:
    """Slices of the first axis, each of some 64 MiB, that together are all of ``array``."""
    step = max(1, _AT_ONCE // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), step):
        yield slice(start, start + step)
