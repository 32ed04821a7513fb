"""Memory-mapped files: files read in place, and arrays that may be larger than memory."""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, Self

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.atomic import DISK_ERRORS

IN_MEMORY = 1 << 30
"""Bytes; larger arrays are mapped from a temporary file."""
_AT_ONCE = 1 << 26
_CHUNK = 1 << 24
_SMALLEST_COPY = 1 << 18  # bytes from which on a system call is worth it


class MappedFile(mmap.mmap):
    """A whole file mapped for reading; it stays readable after it was replaced or removed."""

    descriptor: int

    def __new__(cls, handle: int) -> Self:
        """``handle``: the descriptor of an open file that is not empty; it may be closed after."""
        mapping = super().__new__(cls, handle, 0, access=mmap.ACCESS_READ)
        mapping.descriptor = os.dup(handle)
        return mapping

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


def stream(mapping: mmap.mmap, start: int, end: int, file: IO[bytes]) -> None:
    """Writes bytes of a mapped file to ``file`` without holding them in memory."""
    if isinstance(mapping, MappedFile) and end - start >= _SMALLEST_COPY:
        start = _copied(mapping.descriptor, start, end, file)
    with memoryview(mapping) as view:
        for at in range(start, end, _CHUNK):
            stop = min(at + _CHUNK, end)
            file.write(view[at:stop])
            release_pages(mapping, at, stop)


def _copied(source: int, start: int, end: int, file: IO[bytes]) -> int:
    """Lets the system copy as much as it can; returns where it stopped."""
    if sys.platform != "linux" or not isinstance(file, io.BufferedWriter):
        return start
    file.flush()
    while start < end:
        try:
            count = os.copy_file_range(source, file.fileno(), end - start, start)
        except OSError as error:  # between file systems, or on one that does not support it
            if error.errno in DISK_ERRORS:
                raise
            break
        if count == 0:  # some file systems report their files as empty
            break
        start += count
    return start


def release_pages(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Releases pages of a mapping that nobody has written to; they are read from the file again
    when needed."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED, first, length)


def new_array(where: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array: in memory, or above 1 GiB mapped from a temporary file.

    The file has no name and is freed with the array, however the process ends. Raises
    NormswapError, which begins with ``where``, if there is no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                # A full disk is reported now, instead of a crash when a page is written.
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
    """Slices of the first axis, about 64 MiB each, that together cover ``array``."""
    step = max(1, _AT_ONCE // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), step):
        yield slice(start, start + step)
