"""The folder in which compiled kernels are kept, and which of its files may be loaded.

A library runs as this user, so one is loaded only from a folder and a file that no other user can
write, and only whole: it ends with the SHA-256 of what comes before.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """``normswap`` in the user's cache folder: $XDG_CACHE_HOME, or ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    base = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(base) / "normswap"


def prepare(folder: Path) -> bool:
    """Makes ``folder`` for this user alone; whether it can be written and is safe to load from."""
    if not folder.is_absolute():  # no home folder is known
        return False
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return _is_ours(folder.stat())
    except OSError:
        return False


def is_whole(path: Path) -> bool:
    """Whether the library at ``path`` is there, this user's own, and as it was written."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not (stat.S_ISREG(status.st_mode) and _is_ours(status)):
            return False
        content = file.read()
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def store(library: Path, path: Path) -> None:
    """Puts the library at ``path``, in the same folder, at once: another process sees all of it or
    nothing. Loaders of libraries ignore what follows the last section. Raises OSError."""
    with open(library, "ab") as file:
        file.write(hashlib.sha256(library.read_bytes()).digest())
    library.chmod(0o700)
    os.replace(library, path)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
