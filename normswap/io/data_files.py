"""Files of arrays: ``.npy``, ``.npz`` and ``.safetensors``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array
from normswap.graph.tensors import to_numpy


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays in a file by name; a ``.npy`` has one, which stays mapped until it is used.

    Raises NormswapError naming a file that is missing, damaged, of another kind or that holds
    pickled objects.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise NormswapError(
            f"{path}: is no data file: give a folder of images, or {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise NormswapError(f"{path}: {'is no file' if path.exists() else 'does not exist'}")
    try:
        return reader(path)
    except Exception as error:  # a damaged file can raise nearly anything
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise NormswapError(f"{path}: holds Python objects; save plain arrays") from error
        raise NormswapError(f"{path}: cannot be read: {first_line(error)}") from error


def _read_npy(path: Path) -> dict[str, Array]:
    _check_magic(path, b"\x93NUMPY")
    return {"array": np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, Array]:
    _check_magic(path, b"PK")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check_magic(path: Path, magic: bytes) -> None:
    """numpy takes a file that begins otherwise for a pickle, and says so."""
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise ValueError(f"it is no {path.suffix} file, or damaged")


def _read_safetensors(path: Path) -> dict[str, Array]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: to_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


_READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
