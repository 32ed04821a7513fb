"""Writing a file so that other programs see either its old content or all of the new."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from normswap.errors import NormswapError

PathLike = str | os.PathLike[str]

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def check_writable(path: PathLike) -> None:
    """Raises NormswapError if a file cannot be written at ``path``; leaves nothing behind.

    Call it before long work. A missing or read-only folder is detected by making a file in it.
    """
    os.unlink(_reserve(Path(path)))


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yields an empty temporary file beside ``path`` that replaces it when the block ends well.

    The file has ``path``'s suffix, its permissions if it exists, and is on disk before it is
    renamed. On any exception, KeyboardInterrupt too, it is removed and ``path`` is unchanged. A
    symbolic link at ``path`` is replaced, not followed.
    Raises NormswapError if ``path`` cannot be written or the disk fills up.

    Example::

        with atomic_path("report.html") as temporary:
            temporary.write_text(page)
    """
    path = Path(path)
    temporary = _reserve(path)
    try:
        with _reported(path, temporary):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _reserve(path: Path) -> Path:
    folder = path.parent
    if not path.name:
        raise NormswapError(f"{path}: not the name of a file; name the file to write")
    if path.is_dir():
        raise NormswapError(f"{path}: is a folder; name a file in it")
    if not folder.is_dir():
        raise NormswapError(
            f"{path}: cannot be written, there is no folder {folder}; make it first"
        )
    if path.exists() and not path.is_file():
        raise NormswapError(f"{path}: is not a regular file; name another output")
    if path.exists() and not os.access(path, os.W_OK):
        raise NormswapError(f"{path}: is read-only; name another output or make it writable")
    temporary = folder / f".{path.stem[:40]}.{secrets.token_hex(6)}.tmp{path.suffix}"
    with _reported(path, temporary):
        # Not tempfile: its mode 0600 would outlive the rename; this one follows the umask.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):
            if path.exists():
                os.fchmod(handle, path.stat().st_mode & 0o777)
        os.close(handle)
    return temporary


@contextlib.contextmanager
def _reported(path: Path, temporary: Path) -> Iterator[None]:
    """Turns a system error about the output into a NormswapError; one about an input passes."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None and error.errno in DISK_ERRORS
        if not ours and str(error.filename) not in (str(path), str(temporary)):
            raise
        reason = (error.strerror or str(error)).lower()
        raise NormswapError(f"{path}: cannot be written ({reason}); name another output") from error


def sync(file: Path) -> None:
    """Waits until the content of a file is on disk."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in ``folder`` are on disk, where the file system supports that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
