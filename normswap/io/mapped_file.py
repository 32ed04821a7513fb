"""Files that are mapped to be read, and copies of parts of them that do not pass through memory."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import sys
from typing import IO, Self

from normswap.io.atomic import DISK_ERRORS

_CHUNK = 1 << 24
_SMALL = 1 << 18  # bytes from which on a call of the system is worth it


class MappedFile(mmap.mmap):
    """A whole file, mapped to be read; also after it has been replaced or removed."""

    descriptor: int

    def __new__(cls, handle: int) -> Self:
        """``handle``: the descriptor of a file that is open and not empty; it may be closed."""
        mapping = super().__new__(cls, handle, 0, access=mmap.ACCESS_READ)
        mapping.descriptor = os.dup(handle)
        return mapping

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


def stream(mapping: mmap.mmap, start: int, end: int, file: IO[bytes]) -> None:
    """Writes bytes of a mapped file to ``file`` without holding them in memory."""
    if isinstance(mapping, MappedFile) and end - start >= _SMALL:
        start = _copied(mapping.descriptor, start, end, file)
    with memoryview(mapping) as view:
        for at in range(start, end, _CHUNK):
            stop = min(at + _CHUNK, end)
            file.write(view[at:stop])
            _forget(mapping, at, stop)


def _copied(source: int, start: int, end: int, file: IO[bytes]) -> int:
    """Lets the system copy what it can; where it stopped."""
    if sys.platform != "linux" or not isinstance(file, io.BufferedWriter):
        return start
    file.flush()
    while start < end:
        try:
            count = os.copy_file_range(source, file.fileno(), end - start, start)
        except OSError as error:  # between file systems, or on one that cannot
            if error.errno in DISK_ERRORS:
                raise
            break
        if count == 0:  # some pretend to be empty
            break
        start += count
    return start


def _forget(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Lets go of pages of a read-only mapping; they come back from the file when needed."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED, first, length)
