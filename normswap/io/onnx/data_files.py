"""The data files of an ONNX model: mapping those that it refers to, and writing new ones.

A model may name any file of the machine as the data of its tensors. Only files in the model's
own folder are opened, and only if they are as long as its tensors need. New files always get names
that are free.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import onnx_ir as ir

from normswap.errors import NormswapError, first_line, plain
from normswap.io.atomic import DISK_ERRORS, Replacement, sync, sync_folder
from normswap.io.mapped import MappedFile, stream
from normswap.io.onnx.tensors import InlineTensor, MappedTensor, Placed, Slot, slots, write_tensor

DATA_FILE = "normswap.data_file"
"""Key in a graph's ``meta``: the location of the main data file that it was read with."""

SMALLEST_EXTERNAL = 1024
LARGEST_INLINE = (1 << 31) - (1 << 26)
"""Bytes of inline tensors in a message of at most 2 GB, with 64 MB left for the nodes."""

_LINE, _PAGE, _LARGE = 64, 4096, 1 << 20
_SYNCED_AT_ONCE = 1 << 27  # bytes


# -- reading -------------------------------------------------------------------------------------


def map_data_files(model: ir.Model, path: Path) -> None:
    """Replaces the external tensors of ``model``, loaded from ``path``, by mapped ones.

    Remembers the largest data file, so that new tensors go there even when passes have replaced
    all of the old ones. Raises NormswapError if a data file is missing, too short, outside the
    model's folder or reached through a link that leads outside.
    """
    folder = Path(os.path.abspath(path)).parent
    mappings: dict[Path, MappedFile | None] = {}
    sizes: dict[str, int] = {}
    for slot in list(slots(model)):
        tensor = slot.tensor
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        file = data_file(path, location, slot.name)
        if file not in mappings:
            mappings[file] = _map(path, file)
        tensor.base_dir = folder
        mapped = MappedTensor(tensor, mappings[file])
        _check_span(path, file, slot.name, mapped, mappings[file])
        slot.put(mapped)
        sizes[location] = sizes.get(location, 0) + mapped.nbytes
    if sizes:
        model.graph.meta[DATA_FILE] = max(sizes, key=sizes.__getitem__)


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
    """The mapping of a data file; None for an empty one."""
    named = f"{path}: its data file {plain(file.name)}"
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait forever
            raise NormswapError(f"{named} is not a regular file")
        with open(file, "rb") as handle:
            status = os.fstat(handle.fileno())
            if status.st_nlink > 1:
                # onnx and onnx_ir refuse these too: any file can be linked into a folder.
                raise NormswapError(f"{named} has several hard links; replace it by a copy")
            return MappedFile(handle.fileno()) if status.st_size else None
    except FileNotFoundError as error:
        raise NormswapError(f"{named} is missing; copy it beside the model") from error
    except OSError as error:
        raise NormswapError(f"{named} cannot be read ({error.strerror or error})") from error


def _check_span(
    path: Path, file: Path, name: str, tensor: MappedTensor, mapping: MappedFile | None
) -> None:
    damaged = f"{path}: is damaged:"
    if any(not isinstance(size, int) or size < 0 for size in tensor.shape):
        raise NormswapError(f"{damaged} the shape of '{name}' makes no sense")
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise NormswapError(f"{damaged} '{name}' of type {tensor.dtype.name} cannot be external")
    if tensor.length not in (None, tensor.nbytes):
        raise NormswapError(
            f"{damaged} '{name}' takes {tensor.nbytes} bytes, but {tensor.length} "
            "are given as its length"
        )
    size = 0 if mapping is None else len(mapping)
    if tensor.span[1] > size:
        raise NormswapError(
            f"{path}: its data file {plain(file.name)} is too short: '{name}' ends at byte "
            f"{tensor.span[1]}, the file has {size}; copy it again"
        )


# -- writing -------------------------------------------------------------------------------------


class DataFiles:
    """The data files that ``model`` needs at ``path``, which lies in ``folder``. Only ``written``
    writes them."""

    def __init__(self, model: ir.Model, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._synced: list[tuple[Path, Future[None]]] = []
        held = list(slots(model))
        tensors = ((slot, slot.tensor) for slot in held)
        self._external = [(s, t) for s, t in tensors if isinstance(t, ir.ExternalTensor)]
        self._groups = self._grouped(held, model.graph.meta.get(DATA_FILE))
        if any(_same_file(path, tensor.path) for _, tensor in self._external):
            raise NormswapError(f"{path}: holds the model's data; name another output")

    @contextlib.contextmanager
    def written(self, output: Replacement) -> Iterator[Placed]:
        """Writes the data files and yields what to replace each tensor by; on its end they are on
        disk."""
        placed: Placed = [
            (slot, ir.Tensor(tensor.numpy(), name=tensor.name))
            for slot, tensor in self._external
            if tensor.nbytes == 0  # inline, because no runtime maps an empty range
        ]
        with ThreadPoolExecutor(1) as disk:  # syncs while the rest and the message are made
            for wanted, members in self._groups.items():
                location = self._free(wanted, len(self._groups) == 1)
                placed += self._write(location, members, output, disk)
            yield placed
        for file, synced in self._synced:
            with _reported(file):
                synced.result()

    def hold(self, files: Iterable[Path]) -> None:
        """Maps the tensors whose data is in ``files``, which are about to be removed."""
        for file in files:
            for _, tensor in self._external:
                # A plain one maps its file on first use: do that while the file is there.
                if not isinstance(tensor, MappedTensor) and _same_file(tensor.path, file):
                    with contextlib.suppress(OSError, ValueError):
                        tensor.numpy()

    def _grouped(self, held: list[Slot], remembered: object) -> dict[str, list[Slot]]:
        """The members of each data file, by the location it gets if that is free."""
        own = f"{self._path.name}.data"
        places = [_location(slot.tensor, own) for slot in held]
        sizes: dict[str | None, int] = {}
        for slot, place in zip(held, places, strict=True):
            sizes[place] = sizes.get(place, 0) + slot.tensor.nbytes
        too_large = sizes.pop(None, 0) > LARGEST_INLINE
        main = max(sizes, key=sizes.__getitem__, default=None)
        if main is None and isinstance(remembered, str):
            main = remembered
        groups: dict[str, list[Slot]] = {}
        for slot, place in zip(held, places, strict=True):
            made = not isinstance(slot.tensor, ir.serde.TensorProtoTensor | InlineTensor)
            moves = too_large or (made and main is not None)  # made: by a pass
            if place is None and moves and _may_move(slot):
                place = main or own
            if place is not None and slot.tensor.nbytes > 0:
                groups.setdefault(place, []).append(slot)
        return groups

    def _free(self, wanted: str, only: bool) -> str:
        folder = PurePosixPath(wanted).parent
        names = itertools.chain(
            [wanted],
            [str(folder / f"{self._path.name}.data")] if only else [],
            (str(folder / f"{self._path.name}.{n}.data") for n in itertools.count(1)),
        )
        # Not the name of a source either, even of one that was removed: it would read itself.
        taken = {os.path.realpath(tensor.path) for _, tensor in self._external}
        taken.add(os.path.realpath(self._path))
        places = ((name, os.path.realpath(self._folder / name)) for name in names)
        return next(n for n, place in places if place not in taken and not os.path.lexists(place))

    def _write(
        self, location: str, members: list[Slot], output: Replacement, disk: Executor
    ) -> Placed:
        file = self._folder / location
        placed: Placed = []
        written: dict[object, int] = {}
        with _reported(file), output.create(file) as out:
            synced = 0
            for slot in members:
                tensor = slot.tensor
                key: object = id(tensor)
                if isinstance(tensor, MappedTensor):  # the same bytes are written once
                    key = id(tensor.raw), tensor.span
                if key not in written:
                    written[key] = self._append(out, slot)
                if out.tell() - synced >= _SYNCED_AT_ONCE:
                    self._synced.append((file, disk.submit(sync, file)))
                    synced = out.tell()
                placed.append((slot, _placed_at(slot, location, written[key])))
        self._synced.append((file, disk.submit(sync, file)))
        self._synced.append((file, disk.submit(sync_folder, file.parent)))
        return placed

    def _append(self, out: IO[bytes], slot: Slot) -> int:
        tensor: Any = slot.tensor
        step = _PAGE if tensor.nbytes > _LARGE else _LINE
        out.write(b"\0" * (-out.tell() % step))
        offset = out.tell()
        try:
            if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
                start = tensor.offset or 0
                stream(tensor.raw, start, start + tensor.nbytes, out)  # its file may be removed
            else:
                write_tensor(tensor, out)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            raise NormswapError(
                f"{self._path}: the data of '{slot.name}' cannot be read ({first_line(error)})"
            ) from error
        if out.tell() - offset != tensor.nbytes:
            raise NormswapError(f"{self._path}: the data of '{slot.name}' has the wrong length")
        return offset


@contextlib.contextmanager
def _reported(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NormswapError(
            f"{file}: cannot be written ({error.strerror or error}); name another output"
        ) from error


def _location(tensor: ir.TensorProtocol, otherwise: str) -> str | None:
    """Where an external tensor's data is, relative to the model; None for an inline one."""
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    location = PurePosixPath(os.fspath(tensor.location).replace("\\", "/"))
    # Only a model built by hand can have such a path, and only the data's folder changes.
    outside = location.is_absolute() or ".." in location.parts or ":" in str(location)
    return otherwise if outside else str(location)


def _may_move(slot: Slot) -> bool:
    # Not every runtime reads external data in attributes, or external strings.
    is_text = slot.tensor.dtype == ir.DataType.STRING
    return slot.is_initializer and not is_text and slot.tensor.nbytes > SMALLEST_EXTERNAL


def _placed_at(slot: Slot, location: str, offset: int) -> ir.ExternalTensor:
    tensor = slot.tensor
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=(slot.owner.name if slot.is_initializer else tensor.name) or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props) or None,
    )


def _same_file(first: str | Path, second: str | Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
