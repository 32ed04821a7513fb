"""Writing a file so that other programs see either its old content or all of the new.

That holds whenever the process is killed, and with other processes that write the same file; what
a kill leaves goes with the next run that writes the file (see journal.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from normswap.errors import NormswapError
from normswap.io.journal import Journal, held

PathLike = str | os.PathLike[str]

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def check_writable(path: PathLike) -> None:
    """Raises NormswapError if a file cannot be written at ``path``; leaves nothing behind.

    Call it before long work. A read-only folder is detected by making a file in it, or in the one
    that a missing folder will be made in.
    """
    path = Path(path)
    _check_place(path)
    try:
        with tempfile.TemporaryFile(dir=_nearest(path)):  # without a name, where there are such
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yields an empty temporary file beside ``path`` that replaces it when the block ends well.

    The file has ``path``'s suffix, its permissions if it exists, and is on disk before it is
    renamed. On any exception, KeyboardInterrupt too, it is removed and ``path`` is unchanged; after
    a kill, the next call for ``path`` removes it. A missing folder is made, and goes again if
    nothing comes into it. A symbolic link at ``path`` is replaced, not
    followed. Other processes that write ``path`` wait meanwhile.
    Raises NormswapError if ``path`` cannot be written or the disk fills up.

    Example::

        with atomic_path("report.html") as temporary:
            temporary.write_text(page)
    """
    with replacing(path) as output:
        with output.temporary() as temporary:
            yield temporary
        output.commit(temporary)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Replacement]:
    """Like ``atomic_path``, for a file to which others belong, that are made with it."""
    path = Path(path)
    _check_place(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folder_of(path))
            journal = stack.enter_context(held(path))
        except OSError as error:
            raise _unwritable(path, error) from error
        yield Replacement(path, journal)


class Replacement:
    """The new content of ``path``, and the files that belong to it. What was made is removed again
    unless the block ends with ``commit``."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path, self._journal = path, journal
        self._staying: Sequence[Path] = ()

    @property
    def folder(self) -> Path:
        """The folder of ``path``, without links; all that belongs to it is named in there."""
        return self._journal.folder

    def create(self, file: Path) -> IO[bytes]:
        """A new file, open for writing, and the folders that it needs. Raises OSError, also where
        there is one of that name."""
        for folder in reversed(file.relative_to(self.folder).parents[:-1]):
            place = self.folder / folder
            if not place.exists():
                self._journal.makes(place)
                place.mkdir()
                self._journal.made(place)
        self._journal.makes(file)
        made = open(file, "xb")  # noqa: SIM115  # the caller closes it
        self._journal.made(file)
        return made

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """An empty file to be filled in the block, which then is on disk. System errors about it
        become NormswapErrors; those about an input pass."""
        path = self._path
        name = f".{path.stem[:40]}.{secrets.token_hex(6)}.tmp{path.suffix}"
        temporary = self.folder / name
        with _reported(path, temporary):
            # Not tempfile: its mode 0600 would outlive the rename; this one follows the umask.
            with self.create(temporary) as file, contextlib.suppress(OSError):
                if path.exists():
                    os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            yield temporary
            sync(temporary)

    def supersedes(self, going: Sequence[Path], staying: Sequence[Path]) -> None:
        """Files that belong to the old content. Those ``going`` are removed with it, if no other
        file mentions them; the user is told that those ``staying`` are no longer needed here."""
        self._journal.supersedes(going)
        self._staying = staying

    def commit(self, temporary: Path) -> None:
        """Puts ``temporary`` in place, in one step."""
        with _reported(self._path, temporary):
            self._journal.commits(temporary)
            os.replace(temporary, self._path)
        sync_folder(self.folder)
        self._journal.warn_of_kept(self._staying, "normswap did not write it")


def _check_place(path: Path) -> None:
    folder = _nearest(path)
    if not path.name:
        raise NormswapError(f"{path}: not the name of a file; name the file to write")
    if path.is_dir():
        raise NormswapError(f"{path}: is a folder; name a file in it")
    if not folder.is_dir():
        raise NormswapError(
            f"{path}: cannot be written, {folder} is no folder; name another output"
        )
    if path.exists() and not path.is_file():
        raise NormswapError(f"{path}: is not a regular file; name another output")
    if path.exists() and not os.access(path, os.W_OK):
        raise NormswapError(f"{path}: is read-only; name another output or make it writable")


def _nearest(path: Path) -> Path:
    """The folder of ``path``, or what there is of the way to it."""
    return next((place for place in path.parents if os.path.lexists(place)), path)


@contextlib.contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """Makes the folder of ``path`` where it is missing, and removes it again if it stays empty."""
    missing = [place for place in path.parents if not os.path.lexists(place)]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # something is in it
            for place in missing:
                place.rmdir()


@contextlib.contextmanager
def _reported(path: Path, temporary: Path) -> Iterator[None]:
    """Turns a system error about the output into a NormswapError; one about an input passes."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None and error.errno in DISK_ERRORS
        if not ours and str(error.filename) not in (str(path), str(temporary)):
            raise
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> NormswapError:
    reason = (error.strerror or str(error)).lower()
    return NormswapError(f"{path}: cannot be written ({reason}); name another output")


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
