"""Whether any file nearby names another: what is named may be in use, and is not removed.

A model names its data files; so do configurations, and copies of a model under another suffix. What
a name in a file means is not asked. The files beside the one in question are read whole, in folders
further away only models and configurations.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = frozenset({".onnx", ".ort", ".pb", ".json"})
_LARGEST = 1 << 31  # bytes; a larger file holds weights, no names
_IN_NAMES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def is_mentioned(file: Path, folder: Path, besides: set[Path]) -> bool:
    """Whether a file around ``folder`` has the name of ``file``, which lies in it, or links to it.

    ``besides``: files that do not count, as absolute paths. True also where that cannot be told.
    """
    try:
        for place, entries in _neighbours(file, folder):
            texts = _spellings(file, place)
            for entry in entries:
                path = Path(entry.path)
                if path == file or path in besides:
                    continue
                if entry.is_symlink():
                    if os.path.realpath(path) == os.path.realpath(file):
                        return True
                elif entry.is_file() and _contains(path, texts):
                    return True
    except OSError:
        return True
    return False


def _neighbours(file: Path, folder: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """What is in ``folder`` and in the folders down to ``file``; of the other folders in it, and of
    those that it is in, only links and what is called like a model or a configuration."""
    near = [folder, *(p for p in file.parents if p.is_relative_to(folder) and p != folder)]
    inner: list[Path] = []
    for place in near:
        entries = list(os.scandir(place))
        yield place, entries
        if place == folder:
            inner = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for place in [*folder.parents, *(p for p in inner if p not in near)]:
        try:
            entries = list(os.scandir(place))
        except (PermissionError, FileNotFoundError):  # then no model of it can be run either
            continue
        models = [e for e in entries if os.path.splitext(e.name)[1].lower() in _SUFFIXES]
        yield place, [*models, *(e for e in entries if e.is_symlink() and e not in models)]


def _spellings(file: Path, place: Path) -> set[bytes]:
    """What names ``file`` in ``place``, as models and texts have it, and as JSON may."""
    # Where there is another file of the same name, that one is meant unless the folder is named.
    other = place != file.parent and os.path.lexists(place / file.name)
    name = os.path.relpath(file, place) if other else file.name
    names = {name, name.replace("/", "\\")}
    return {os.fsencode(n) for n in names} | {json.dumps(n)[1:-1].encode() for n in names}


def _contains(path: Path, texts: set[bytes]) -> bool:
    try:
        with open(path, "rb", opener=_open_at_once) as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _LARGEST:
                return False
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                return any(_has_name(mapping, text) for text in texts)
    except FileNotFoundError:  # another program has removed it by now
        return False


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _has_name(mapping: mmap.mmap, name: bytes) -> bool:
    """Whether the name is in there, not only as the end of a longer one."""
    at = mapping.find(name)
    while at >= 0:
        before = mapping[at - 1] if at else 0
        # In a protobuf message the length of a string is before it, which may be a letter's code.
        if before not in _IN_NAMES or before == len(name):
            return True
        at = mapping.find(name, at + 1)
    return False
