"""Bounds on what a file may make of itself: no size in one is believed."""

from __future__ import annotations

import stat
from pathlib import Path

from normswap.errors import NormswapError

LARGEST_EXAMPLE = 1 << 26
"""The most elements that the example inputs of an ONNX model have in all."""
_INFLATED = 1 << 29  # bytes that a small file may hold once it is unpacked
_RATIO = 50  # by which a larger one may grow


def check_regular(path: Path) -> None:
    """Raises NormswapError for what is there but no regular file: opening a pipe waits forever, and
    a device has no end."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise NormswapError(f"{path}: is not a regular file; replace it by one")


def check_inflation(path: Path, size: int) -> None:
    """Raises NormswapError for a file that holds ``size`` bytes once it is unpacked, if that is out
    of proportion to its own size."""
    if size > max(_INFLATED, _RATIO * path.stat().st_size):
        raise NormswapError(
            f"{path}: holds {size / (1 << 30):.1f} GiB in {path.stat().st_size:,} bytes; save it "
            "without compression"
        )
