"""Which data files of a model go with it when it is replaced.

A model may name any file of its folder as data, and others may need that file. So a file goes only
if it is nothing but tensors of that model, and if normswap wrote it, as a note in the model says,
or if it is called like the model. Whether another file mentions it is asked when it goes
(journal.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from normswap.errors import NormswapError
from normswap.io.onnx.data_files import data_file
from normswap.io.onnx.tensors import slots

WRITTEN = "normswap.data_files"
"""Metadata of a model: the data files that normswap wrote with it, as JSON: location to digest."""

_WIDEST_GAP = 1 << 16  # what writers align tensors to
_ENDS = 1 << 16  # bytes at both ends of a file that its digest is made of


def written_note(folder: Path, locations: set[str]) -> str:
    """The value of ``WRITTEN`` for data files in ``folder``."""
    return json.dumps({place: _digest(folder / place) for place in sorted(locations)})


def old_data(path: Path, proto: onnx.ModelProto) -> tuple[list[Path], list[Path]]:
    """The data files of the model at ``path`` that may go with it, and those that stay."""
    folder = Path(os.path.realpath(path.parent))
    notes = {p.key: p.value for p in proto.metadata_props}
    spans: dict[str, list[tuple[int, int]]] = {}
    for slot in slots(ir.serde.deserialize_model(proto)):
        tensor = slot.tensor
        if isinstance(tensor, ir.ExternalTensor):
            with contextlib.suppress(NormswapError):
                file = data_file(folder / path.name, str(tensor.location), slot.name)
                place = file.relative_to(folder).as_posix()
                start = tensor.offset or 0
                spans.setdefault(place, []).append((start, start + tensor.nbytes))
    written = _read_note(notes.get(WRITTEN))
    going, staying = [], []
    for place, held in spans.items():
        file = folder / place
        known = place in written or _called_like(path, place)
        try:
            goes = known and _is_plain(folder, place) and _is_filled(file, held)
            if goes and place in written:
                goes = written[place] == _digest(file)
        except OSError:
            goes = False
        if goes:
            going.append(file)
        elif os.path.lexists(file):
            staying.append(file)
    return going, staying


def _read_note(text: str | None) -> Mapping[str, object]:
    with contextlib.suppress(ValueError, RecursionError):
        note = json.loads(text or "{}")
        if isinstance(note, dict):
            return note
    return {}


def _called_like(path: Path, place: str) -> bool:
    """Whether the exporters and tools that are in use call data of ``path`` so."""
    name, stem = re.escape(path.name), re.escape(path.stem)
    return bool(re.fullmatch(rf"{name}[._]data(_\d+)?|{name}\.\d+\.data|{stem}\.data", place))


def _is_plain(folder: Path, place: str) -> bool:
    """Whether it is a regular file, with one name and without links on the way to it."""
    status = os.lstat(folder / place)
    linked = (folder / place).resolve() != folder.resolve() / place
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not linked


def _is_filled(file: Path, spans: list[tuple[int, int]]) -> bool:
    """Whether the file is the bytes of its tensors, and zeros between them."""
    with open(file, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        done = 0
        for start, end in [*sorted(spans), (size, size)]:
            if not 0 <= start <= end <= size or start - done >= _WIDEST_GAP:
                return False
            if start > done:
                handle.seek(done)
                if handle.read(start - done).strip(b"\0"):
                    return False
            done = max(done, end)
    return True


def _digest(file: Path) -> str:
    """Of its length and its two ends: weights are long, and to read them takes long."""
    with open(file, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        made = hashlib.sha256(f"{size}\n".encode() + handle.read(_ENDS))
        handle.seek(max(0, size - _ENDS))
        made.update(handle.read(_ENDS))
    return made.hexdigest()[:32]
