"""Reading and writing ``.pt2`` files (``torch.export.save``).

``torch.export.load`` runs code from the file in many ways: it unpickles with arbitrary classes
whenever the safe way fails, evaluates strings, imports modules that the file names and executes
generated source with names from the file in it. So without ``trust`` the file never reaches it:
the archive is opened here, its program checked (``pt2_check``), its tensors read (``pt2_parts``),
and torch builds the program from these checked objects. Nothing is read twice.
"""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch

from normswap.errors import NormswapError, first_line, quiet
from normswap.io.archive import Archive, BadArchive, open_archive
from normswap.io.atomic import PathLike, atomic_path

_SAVE_AGAIN = "export it again with torch.export.save"
_FOLDERS = (
    "data/weights/",
    "data/constants/",
    "data/sample_inputs/",
    "models/",
    "extra/",
    ".data/",
)
_LONGEST_NOTE = 1 << 16
_FILES = ("archive_format", "archive_version", "byteorder", "version")


def read_pt2(path: PathLike, trust: bool = False) -> torch.export.ExportedProgram:
    """The program in a ``.pt2`` file.

    Without ``trust`` nothing from the file runs, and a file that holds more than tensors and
    operators of torch is refused. Its weights stay mapped: they are read when used, writing to
    them leaves the file alone, and they outlive its replacement (though not a program that
    overwrites it in place, as ``torch.export.save`` does).
    Raises NormswapError for a file that is missing, damaged, of another kind, or refused.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "there is no such file"
        raise NormswapError(f"{path}: {problem}; name a .pt2 file")
    if trust:
        return _load_unchecked(path)
    try:
        archive, mapping = open_archive(path)
        _check_members(path, archive)
        return _load(path, archive, mapping)
    except BadArchive as error:
        if _is_pickle(path):
            refuse_pickle(path)
        raise NormswapError(f"{path}: {error}; {_SAVE_AGAIN}") from error


def read_pt2_note(path: PathLike, name: str) -> str | None:
    """The text that ``write_pt2`` put into the file as ``name``; None if there is none.

    To be called for a file that ``read_pt2`` took: what cannot be read is none.
    """
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
    """Writes ``program``; ``path`` holds its old content until all of the new is on disk.

    ``notes``: texts by name that the file holds besides it, for ``read_pt2_note``.
    Raises NormswapError if ``path`` cannot be written or torch cannot serialise the program.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            # To a file object: given a path, torch names the archive's root after it.
            torch.export.save(program, file, extra_files=dict(notes or {}))
        except OSError:
            raise
        except Exception as error:
            reason = first_line(error)
            raise NormswapError(f"{path}: torch.export.save failed ({reason})") from error


def refuse_pickle(path: PathLike) -> NoReturn:
    """Raises NormswapError: loading a pickled module runs code from it, and it is no graph."""
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
            from normswap.io.pt2.parts import refuse

            refuse(path, name)
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise BadArchive("was written on a big-endian machine")


def _load(path: Path, archive: Archive, mapping: mmap.mmap) -> torch.export.ExportedProgram:
    # Not public: torch.export.load offers no way to hand it checked objects.
    try:
        from torch._export.serde import schema
        from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

        from normswap.io.pt2.check import check_calls, check_program
        from normswap.io.pt2.names import Unsafe, shown
        from normswap.io.pt2.parts import Parts, refuse
    except ImportError as error:
        raise NormswapError(
            f"{path}: normswap cannot check .pt2 files with torch {torch.__version__} "
            f"({first_line(error)}); install the torch of its constraints file"
        ) from error
    parts = Parts(path, archive, mapping, _model_name(path, archive))
    part = f"models/{parts.model}.json"
    version = ""
    try:
        document = parts.document(part)
        version = shown(document.get("torch_version"))
        serialized = _dict_to_dataclass(schema.ExportedProgram, document)
        check_program(serialized)
        weights, constants = parts.tensors("weights"), parts.tensors("constants")
        inputs = parts.sample_inputs()
        with quiet("torch.export", "torch._export"):
            program = ExportedProgramDeserializer().deserialize(
                serialized, weights, constants, inputs
            )
        check_calls(program.graph_module)
        return program
    except Unsafe as error:
        refuse(path, part, str(error))
    except (NormswapError, BadArchive):
        raise
    except Exception as error:  # torch raises whatever it meets in a program it cannot rebuild
        raise NormswapError(
            f"{path}: torch {torch.__version__} cannot rebuild the program that torch {version} "
            f"wrote ({first_line(error)}); {_SAVE_AGAIN}"
        ) from error


def _model_name(path: Path, archive: Archive) -> str:
    parts = [name for name in archive.names if name.startswith("models/")]
    names = [part.removeprefix("models/").removesuffix(".json") for part in parts]
    if "model" in names:
        return "model"
    if len(names) != 1:
        raise NormswapError(
            f"{path}: holds {len(names)} programs and none is called model; save one per file"
        )
    return names[0]


def _load_unchecked(path: Path) -> torch.export.ExportedProgram:
    try:
        with quiet("torch.export", "torch._export"):
            return torch.export.load(os.fspath(path))
    except Exception as error:
        raise NormswapError(
            f"{path}: torch.export.load failed ({first_line(error)}); {_SAVE_AGAIN}"
        ) from error
