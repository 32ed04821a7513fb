"""The data files of an ONNX model: which it refers to, and whether they are what it says.

A model may name any file of the machine as the data of its tensors. Only files in the model's
own folder are opened, and only if they are as long as its tensors need.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir as ir

from normswap.errors import NormswapError, plain
from normswap.io.mapped_file import MappedFile
from normswap.io.onnx.tensors import MappedTensor, slots


def map_data_files(model: ir.Model, path: Path) -> None:
    """Replaces the external tensors of ``model``, loaded from ``path``, by mapped ones.

    Raises NormswapError if a data file is missing, too short, outside the model's folder or
    reached through a link that leads outside.
    """
    folder = Path(os.path.abspath(path)).parent
    mappings: dict[Path, MappedFile | None] = {}
    for slot in list(slots(model)):
        tensor = slot.tensor
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = data_file(path, str(tensor.location), slot.name)
        if file not in mappings:
            mappings[file] = _map(path, file)
        tensor.base_dir = folder
        mapped = MappedTensor(tensor, mappings[file])
        _check_span(path, file, slot.name, mapped, mappings[file])
        slot.put(mapped)


def data_file(path: Path, location: str, name: str) -> Path:
    """The file that holds tensor ``name`` of the model at ``path``; it need not exist.

    Raises NormswapError if ``location`` leads outside the folder of ``path``.
    """
    windows = PureWindowsPath(location)
    parts = PurePosixPath(location.replace("\\", "/")).parts
    folder = Path(os.path.abspath(path)).parent
    rooted = windows.drive or windows.root or PurePosixPath(location).is_absolute()
    if not parts or rooted or ".." in parts or "\0" in location:
        raise NormswapError(
            f"{path}: the data of '{name}' lies outside its folder ({location[:100]!r}); "
            "move the data beside the model and save the model again"
        )
    file = folder.joinpath(*parts)
    if not file.resolve().is_relative_to(folder.resolve()):
        raise NormswapError(
            f"{path}: its data file {plain(location)} is a link that leads outside its folder; "
            "replace the link by a copy (cp -L)"
        )
    return file


def _map(path: Path, file: Path) -> MappedFile | None:
    named = f"{path}: its data file {plain(file.name)}"
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # to open a pipe would wait forever
            raise NormswapError(f"{named} is not a regular file")
        with open(file, "rb") as handle:
            status = os.fstat(handle.fileno())
            if status.st_nlink > 1:
                # onnx and onnx_ir refuse these too: any file can be linked into a folder.
                raise NormswapError(f"{named} has several hard links; replace it by a copy")
            if status.st_size == 0:
                return None
            return MappedFile(handle.fileno())
    except FileNotFoundError as error:
        raise NormswapError(f"{named} is missing; copy it beside the model") from error
    except OSError as error:
        raise NormswapError(f"{named} cannot be read ({error.strerror or error})") from error


def _check_span(
    path: Path, file: Path, name: str, tensor: MappedTensor, mapping: MappedFile | None
) -> None:
    if any(not isinstance(size, int) or size < 0 for size in tensor.shape):
        raise NormswapError(f"{path}: is damaged: the shape of '{name}' makes no sense")
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise NormswapError(
            f"{path}: is damaged: '{name}' of type {tensor.dtype.name} cannot be external"
        )
    if tensor.length not in (None, tensor.nbytes):
        raise NormswapError(
            f"{path}: is damaged: '{name}' takes {tensor.nbytes} bytes, but {tensor.length} "
            "are given as its length"
        )
    size = 0 if mapping is None else len(mapping)
    if tensor.span[1] > size:
        raise NormswapError(
            f"{path}: its data file {plain(file.name)} is too short: '{name}' ends at byte "
            f"{tensor.span[1]}, the file has {size}; copy it again"
        )
