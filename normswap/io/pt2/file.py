"""Reading and writing ``.pt2`` files (``torch.export.save``).

``torch.export.load`` runs code from the file in many ways: it unpickles with arbitrary classes
whenever the safe way fails, evaluates strings, imports modules that the file names and executes
generated source with names from the file in it. So without ``trust`` it never sees the file: the
archive is opened here, its program is checked (check.py) and its tensors are read (program.py), and
torch builds the program from these checked objects. Nothing is read twice.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import torch

from normswap.errors import NormswapError, first_line, quiet
from normswap.extras import pip_install
from normswap.io.atomic import PathLike, atomic_path
from normswap.io.mapped import release_pages
from normswap.io.pt2.archive import SAVE_AGAIN, Archive, BadArchive, open_archive, refuse

TESTED_TORCH = "torch==2.13.0"  # program.py and check.py use parts of torch that are not public
_LONGEST_NOTE = 1 << 16
_DATA_FOLDERS = ("data/weights/", "data/constants/", "data/sample_inputs/")
_FOLDERS = (*_DATA_FOLDERS, "models/", "extra/", ".data/")
_FILES = ("archive_format", "archive_version", "byteorder", "version")


def read_pt2(path: PathLike, trust: bool = False) -> torch.export.ExportedProgram:
    """The program in a ``.pt2`` file.

    Without ``trust`` nothing from the file runs, and a file that holds more than tensors and
    operators of torch is refused. Its weights stay mapped: they are read when used, writing to
    them does not change the file, and they stay valid when the file is replaced (but not when it
    is overwritten in place, as ``torch.export.save`` does).
    Raises NormswapError for a file that is missing, damaged, of another kind, or refused.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "there is no such file"
        raise NormswapError(f"{path}: {problem}; name a .pt2 file")
    if trust:
        _check_checksums(path)
        return _load_unchecked(path)
    try:
        archive, mapping = open_archive(path)
        _check_members(path, archive)
        from normswap.io.pt2.program import rebuilt  # uses torch's internals

        return rebuilt(path, archive, mapping)
    except ImportError as error:
        raise NormswapError(
            f"{path}: normswap cannot check .pt2 files with torch {torch.__version__} "
            f"({first_line(error)}); {pip_install(TESTED_TORCH)}"
        ) from error
    except BadArchive as error:
        if _is_pickle(path):
            refuse_pickle(path)
        raise NormswapError(f"{path}: {error}; {SAVE_AGAIN}") from error


def read_pt2_note(path: PathLike, name: str) -> str | None:
    """The text that ``write_pt2`` put into the file as ``name``; None where none can be read."""
    part = f"extra/{name}"
    try:
        archive, _ = open_archive(Path(path))
        if part not in archive or archive.span(part)[1] > _LONGEST_NOTE:
            return None
        return archive.read(part).decode()
    except (BadArchive, NormswapError, UnicodeDecodeError):
        return None


def write_pt2(
    program: torch.export.ExportedProgram, path: PathLike, notes: Mapping[str, str] | None = None
) -> None:
    """Writes ``program``; ``path`` keeps its old content until the new one is all on disk.

    ``notes``: further texts for the file by name, for ``read_pt2_note``.
    Raises NormswapError if ``path`` cannot be written or torch cannot serialise the program.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        sink = _Sink(file)
        try:
            # To a file object: given a path, torch names the archive's root after it.
            torch.export.save(program, cast(IO[bytes], sink), extra_files=dict(notes or {}))
        except OSError:
            raise
        except Exception as error:
            raise NormswapError(
                f"{path}: torch.export.save failed ({first_line(error)})"
            ) from error
        if sink.error is not None:
            raise sink.error


class _Sink(io.RawIOBase):
    """What torch writes an archive to. Torch ends the process where a write fails, so the first
    ``error`` is kept, and all that follows is dropped."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Does nothing: torch writes in order, and goes back to the start at the end."""
        return 0

    def write(self, content: Any) -> int:
        if self.error is None:
            try:
                self._file.write(content)
            except BaseException as error:  # an interrupt too
                self.error = error
        return len(content)


def refuse_pickle(path: PathLike) -> NoReturn:
    """Raises NormswapError: loading a pickled module runs code, and it holds no graph."""
    raise NormswapError(
        f"{path}: a pickled module runs code from the file when loaded; save the model with "
        "torch.export.save (.pt2), or its weights as safetensors in a Hugging Face folder"
    )


def _is_pickle(path: Path) -> bool:
    """Whether torch.save, torch.jit.save or pickle wrote the file, under a wrong name."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
    except Exception:  # zipfile raises whatever a damaged directory leads to
        return path.open("rb").read(1) == b"\x80"  # the first opcode of every recent pickle
    return bool(parts & {"data.pkl", "constants.pkl"})


def _check_members(path: Path, archive: Archive) -> None:
    if "serialized_exported_program.json" in archive:
        raise NormswapError(
            f"{path}: was written by torch before 2.8; load it there and save it with a newer "
            "torch, or pass --trust if you know where the file comes from"
        )
    if "archive_format" not in archive or archive.read("archive_format") != b"pt2":
        raise BadArchive("is not a .pt2 archive")
    for name in archive.names:
        if name not in _FILES and not name.startswith(_FOLDERS):
            refuse(path, name)
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise BadArchive("was written on a big-endian machine")


def _check_checksums(path: Path) -> None:
    """Torch does not look at those of weights. Archives that are not its own are left to it."""
    try:
        archive, mapping = open_archive(path)
    except BadArchive:
        return
    for name in archive.names:
        try:
            archive.verify(name)
        except BadArchive as error:
            raise NormswapError(f"{path}: {error}; {SAVE_AGAIN}") from error
        start, length = archive.span(name)
        release_pages(mapping, start, start + length)


def _load_unchecked(path: Path) -> torch.export.ExportedProgram:
    try:
        with quiet("torch.export", "torch._export"):
            return torch.export.load(os.fspath(path))
    except Exception as error:
        raise NormswapError(
            f"{path}: torch.export.load failed ({first_line(error)}); {SAVE_AGAIN}"
        ) from error
