"""Writing the data files of an ONNX model, always under free names."""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any

import onnx_ir as ir

from normswap.errors import NormswapError, first_line
from normswap.io.atomic import DISK_ERRORS, sync, sync_folder
from normswap.io.mapped_file import stream
from normswap.io.onnx.inline import InlineTensor
from normswap.io.onnx.tensors import MappedTensor, Slot, slots

_LOG = logging.getLogger("normswap")

DATA_FILE = "normswap.data_file"
"""Key in a graph's ``meta``: the location of the main data file that it was read with."""

SMALLEST_EXTERNAL = 1024
LARGEST_INLINE = (1 << 31) - (1 << 26)
"""Bytes of inline tensors in a message of at most 2 GB, with 64 MB left for the nodes."""

_LINE, _PAGE, _LARGE = 64, 4096, 1 << 20
_SYNCED_AT_ONCE = 1 << 27  # bytes

Placed = list[tuple[Slot, ir.TensorProtocol]]


class DataFiles:
    """The data files that ``model`` needs at ``path``. Nothing is written before ``written``."""

    def __init__(self, model: ir.Model, path: Path) -> None:
        self._path = path
        self._folder = path.absolute().parent
        self._owner: tuple[int, int] | None = None
        self._synced: list[tuple[Path, Future[None]]] = []
        held = list(slots(model))
        self._external = [slot for slot in held if isinstance(slot.tensor, ir.ExternalTensor)]
        self._groups = self._grouped(held, model.graph.meta.get(DATA_FILE))
        if any(_same_file(path, _external(slot).path) for slot in self._external):
            raise NormswapError(f"{path}: holds the model's data; name another output")

    @contextlib.contextmanager
    def written(self) -> Iterator[Placed]:
        """Writes the data files and yields what each tensor is to be replaced by.

        The files are removed again if the block raises, unless ``path`` refers to them by then.
        """
        made: list[Path] = []
        placed: Placed = [
            (slot, ir.Tensor(slot.tensor.numpy(), name=slot.tensor.name))
            for slot in self._external
            if slot.tensor.nbytes == 0  # no runtime maps nothing: inline
        ]
        try:
            with ThreadPoolExecutor(1) as disk:  # it lags behind, while the message is made too
                for wanted, members in self._groups.items():
                    location = self._free(wanted, len(self._groups) == 1)
                    placed += self._write(location, members, made, disk)
                yield placed
        except BaseException:
            # An interrupt may come after the model has taken its name, before that returns.
            if self._owner is None or self._owner != _identity(self._path):
                for item in reversed(made):
                    with contextlib.suppress(OSError):
                        item.rmdir() if item.is_dir() else item.unlink()
            raise

    def settle(self, temporary: Path) -> None:
        """Waits until the data files are on disk, and says which file, once at ``path``, refers to
        them."""
        for file, synced in self._synced:
            with _reported(file):
                synced.result()
        self._owner = _identity(temporary)

    def remove(self, superseded: Iterable[Path]) -> None:
        """Removes files that the model at ``path`` no longer uses; a failure is only logged."""
        for file in superseded:
            try:
                for slot in self._external:
                    tensor = _external(slot)
                    # A plain one maps its file when first used: do that while it is there.
                    if not isinstance(tensor, MappedTensor) and _same_file(tensor.path, file):
                        tensor.numpy()
                file.unlink()
            except (OSError, ValueError) as error:
                _LOG.warning("%s is no longer used but could not be removed (%s)", file, error)

    def _grouped(self, held: list[Slot], remembered: object) -> dict[str, list[Slot]]:
        """The members of each data file, by the location it is to have if that is free."""
        own = f"{self._path.name}.data"
        places = [_location(slot.tensor, own) for slot in held]
        sizes: dict[str, int] = {}
        inline = 0
        for slot, place in zip(held, places, strict=True):
            if place is None:
                inline += slot.tensor.nbytes
            else:
                sizes[place] = sizes.get(place, 0) + slot.tensor.nbytes
        main = max(sizes, key=lambda place: sizes[place], default=None)
        if main is None and isinstance(remembered, str):
            main = remembered
        too_large = inline > LARGEST_INLINE
        groups: dict[str, list[Slot]] = {}
        for slot, place in zip(held, places, strict=True):
            moves = too_large or (main is not None and _is_new(slot.tensor))
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
        # Not the name of a source either, even of one that has gone: it would read itself.
        taken = {os.path.abspath(_external(slot).path) for slot in self._external}
        taken.add(os.path.abspath(self._path))
        places = ((name, os.path.abspath(self._folder / name)) for name in names)
        return next(n for n, place in places if place not in taken and not os.path.lexists(place))

    def _write(
        self, location: str, members: list[Slot], made: list[Path], disk: Executor
    ) -> Placed:
        file = self._folder / location
        placed: Placed = []
        written: dict[object, int] = {}
        with _reported(file):
            for parent in reversed(file.relative_to(self._folder).parents[:-1]):
                if not (self._folder / parent).exists():
                    (self._folder / parent).mkdir()
                    made.append(self._folder / parent)
            with open(file, "xb") as out:
                made.append(file)
                synced = 0
                for slot in members:
                    tensor = slot.tensor
                    key = _content(tensor)
                    if key not in written:
                        written[key] = self._append(out, slot)
                    if out.tell() - synced >= _SYNCED_AT_ONCE:
                        self._synced.append((file, disk.submit(sync, file)))
                        synced = out.tell()
                    placed.append((slot, _placed_at(slot, location, written[key])))
        self._synced += [
            (file, disk.submit(sync, file)),
            (file, disk.submit(sync_folder, file.parent)),
        ]
        return placed

    def _append(self, out: IO[bytes], slot: Slot) -> int:
        tensor: Any = slot.tensor
        step = _PAGE if tensor.nbytes > _LARGE else _LINE
        out.write(b"\0" * (-out.tell() % step))
        offset = out.tell()
        try:
            if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
                start = tensor.offset or 0
                stream(tensor.raw, start, start + tensor.nbytes, out)  # its file may be gone by now
            else:
                tensor.tofile(out) if hasattr(tensor, "tofile") else out.write(tensor.tobytes())
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


def superseded_files(path: Path, files: Iterable[Path]) -> list[Path]:
    """Those of the data ``files`` of the model at ``path`` that no other model there mentions."""
    folder = path.absolute().parent
    return [
        file
        for file in files
        if file.is_file() and not file.is_symlink() and not _mentioned(file, folder, path)
    ]


def _mentioned(file: Path, folder: Path, path: Path) -> bool:
    """Whether an .onnx file between ``folder`` and the data file has its name in it."""
    for near in (file.parent, *file.parent.parents):
        for other in near.glob("*.onnx"):
            if not _same_file(other, path) and _contains(other, file.name.encode()):
                return True
        if near == folder:
            return False
    return True


def _contains(file: Path, text: bytes) -> bool:
    try:
        with (
            open(file, "rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
        ):
            return mapping.find(text) >= 0
    except ValueError:  # an empty file
        return False
    except OSError:
        return True


def _location(tensor: ir.TensorProtocol, otherwise: str) -> str | None:
    """Where an external tensor's data is, relative to the model; None for an inline one."""
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    location = PurePosixPath(os.fspath(tensor.location).replace("\\", "/"))
    # Only a model built by hand can have such a path, and only the data's folder changes.
    outside = location.is_absolute() or ".." in location.parts or ":" in str(location)
    return otherwise if outside else str(location)


def _is_new(tensor: ir.TensorProtocol) -> bool:
    """Whether a pass made it."""
    return not isinstance(tensor, ir.serde.TensorProtoTensor | InlineTensor)


def _may_move(slot: Slot) -> bool:
    # Runtimes are shy of external data in attributes, and of external strings.
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


def _content(tensor: ir.TensorProtocol) -> object:
    """Equal for tensors over the same bytes, which are written once."""
    if isinstance(tensor, MappedTensor):
        return id(tensor.raw), tensor.span
    return id(tensor)


def _external(slot: Slot) -> ir.ExternalTensor:
    assert isinstance(slot.tensor, ir.ExternalTensor)
    return slot.tensor


def _identity(file: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.stat(file)
        return status.st_dev, status.st_ino
    return None


def _same_file(first: str | Path, second: str | Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
