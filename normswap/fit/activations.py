"""Storage for activations: in memory up to a limit, the rest in a temporary file."""

from __future__ import annotations

import tempfile
from io import FileIO
from typing import Any, Self

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.graph.tensors import has_own_memory

MEMORY = 1 << 30
"""Bytes of activations that are kept in memory by default."""
_PAGE = 4096


class Activations:
    """A context manager that stores arrays: at most ``memory`` bytes of them in memory, the others
    in a temporary file. That has no name, so it is freed however the process ends."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.held = 0
        self._file: FileIO | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # offsets of freed space, by size

    def keep(self, array: Array) -> Kept:
        """A handle to the array, which the caller must not change afterwards.

        Raises NormswapError if the temporary folder has no room for it.
        """
        if not has_own_memory(array):
            array = array.copy()  # a view would keep all of the larger array
        if self.held + array.nbytes <= self.memory or not array.size:
            self.held += array.nbytes
            return _InMemory(self, array, array.nbytes)
        return _InFile(self, array)

    def borrow(self, array: Array) -> Kept:
        """A handle to an array that its owner keeps anyway; it does not count."""
        return _InMemory(self, array, 0)

    @property
    def spilled(self) -> int:
        """The size of the file, in bytes."""
        return self._end

    def write(self, array: Array) -> int:
        """Writes an array to the file; its offset."""
        size = -(-array.nbytes // _PAGE) * _PAGE
        free = self._free.get(size)
        offset = free.pop() if free else self._end
        self._end = max(self._end, offset + size)
        rest = _bytes(np.ascontiguousarray(array))
        try:
            if self._file is None:  # unbuffered, so that close does not retry what did not fit
                self._file = tempfile.TemporaryFile("w+b", 0, prefix="normswap-")  # noqa: SIM115
            self._file.seek(offset)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            folder = tempfile.tempdir or "the temporary folder"
            raise NormswapError(
                f"{folder}: has no room for the activations of the calibration data "
                f"({error.strerror or error}); take fewer samples, or set TMPDIR to another folder"
            ) from error
        return offset

    def read(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The array written at ``offset``, as a copy: a view that an operator makes of it may
        outlive the space in the file."""
        assert self._file is not None
        array = np.empty(shape, dtype)
        rest = _bytes(array)
        self._file.seek(offset)
        while rest:
            count = self._file.readinto(rest)
            if not count:
                raise NormswapError("the temporary file of the activations was cut short")
            rest = rest[count:]
        return array

    def release(self, offset: int, size: int) -> None:
        """Frees the ``size`` bytes at ``offset``, to be overwritten."""
        self._free.setdefault(-(-size // _PAGE) * _PAGE, []).append(offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _bytes(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


class _InMemory:
    def __init__(self, owner: Activations, array: Array, counted: int) -> None:
        self._owner, self._array, self._counted = owner, array, counted

    def array(self) -> Array:
        return self._array

    def drop(self) -> None:
        self._owner.held -= self._counted


class _InFile:
    def __init__(self, owner: Activations, array: Array) -> None:
        self._owner, self._offset = owner, owner.write(array)
        self._shape, self._dtype, self._size = array.shape, array.dtype, array.nbytes

    def array(self) -> Array:
        return self._owner.read(self._offset, self._shape, self._dtype)

    def drop(self) -> None:
        self._owner.release(self._offset, self._size)


Kept = _InMemory | _InFile
"""A stored array: ``array()`` returns it, ``drop()`` frees it, once."""
