"""What a run makes and removes while it replaces a file, and the lock that it holds meanwhile.

A journal is a hidden file beside the one to be replaced. It is locked, so that one run at a time
writes a file with all that belongs to it, and it is removed when the run ends. A kill leaves it,
but not its lock: the next run that writes the same file finds in it what there is to clean up.
Nothing in it is trusted: it says which files to look at, and only those go that are still the
files that were made.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from normswap.errors import NormswapError, plain
from normswap.io.mentions import is_mentioned

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: as on a file system without locks
    fcntl = None

_LOG = logging.getLogger("normswap")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LONGEST = 1 << 24  # bytes of a journal
_SHOWN = 3  # names in a message

TEMPORARY = re.compile(r"\.[^/]*\.[0-9a-f]{12}\.tmp(\.[^/]*)?")
"""Names that only normswap gives, to files that are not yet whole."""


class Journal:
    """Of the replacement of ``path``: see ``held``. ``folder``: where it is, without links."""

    def __init__(self, path: Path, handle: int | None) -> None:
        self._path, self._handle = path, handle
        self.folder = Path(os.path.realpath(path.parent))
        self._made: dict[str, int | None] = {}
        self._superseded: dict[str, int] = {}
        self._commit: int | None = None

    def makes(self, file: Path) -> None:
        """``file`` is about to be made: a new one, or a folder."""
        self._note("made", file, None)

    def made(self, file: Path) -> None:
        """``file`` was made."""
        self._note("made", file, os.lstat(file).st_ino)

    def supersedes(self, files: Iterable[Path]) -> None:
        """``files`` are to be removed once the new content is in place."""
        for file in files:
            if (inode := _inode(file)) is not None:
                self._note("superseded", file, inode)

    def commits(self, temporary: Path) -> None:
        """``temporary`` is about to be renamed to the path."""
        self._note("commit", temporary, os.lstat(temporary).st_ino)

    def finish(self) -> None:
        """Removes what is no longer needed: the old data, or all that was made for nothing."""
        committed = self._commit is not None and self._commit == _inode(self._path)
        if committed:
            self._remove(self._superseded, {self.folder / self._path.name})
        elif self._commit is None:
            for name in reversed(self._made):
                self._remove_if_ours(name, self._made[name])
        else:  # what was put in place has another name by now, or was never put in place
            self._remove(dict(reversed(self._made.items())), set())

    def warn_of_kept(self, files: Sequence[Path], why: str) -> None:
        """Tells the user which old data stays, on one line."""
        if files:
            names = ", ".join(plain(file.relative_to(self.folder)) for file in files[:_SHOWN])
            more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
            _LOG.warning(
                "%s: its former data stays: %s%s (%s); remove it if you do not need it",
                *(self._path, names, more, why),
            )

    def read(self) -> None:
        """Takes over the notes of a run that was killed."""
        assert self._handle is not None
        for line in os.pread(self._handle, _LONGEST, 0).splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                kind, name, inode = json.loads(line)
                if isinstance(name, str) and isinstance(inode, int | None):
                    self._hold(kind, name, inode)

    def _note(self, kind: str, file: Path, inode: int | None) -> None:
        name = file.relative_to(self.folder).as_posix()
        if self._handle is not None:
            os.write(self._handle, json.dumps([kind, name, inode]).encode() + b"\n")
        self._hold(kind, name, inode)

    def _hold(self, kind: Any, name: str, inode: int | None) -> None:
        if kind == "made":
            self._made[name] = inode
        elif kind == "superseded" and inode is not None:
            self._superseded[name] = inode
        elif kind == "commit":
            self._commit = inode

    def _remove(self, files: dict[str, int] | dict[str, int | None], besides: set[Path]) -> None:
        """Removes those of ``files`` that no other file mentions, and says which ones stay."""
        besides = besides | {self.folder / _lock_name(self._path)}
        besides |= {self.folder / name for name in (*files, *self._made)}
        kept = []
        for name, inode in files.items():
            file = self.folder / name
            if not self._is_ours(name, inode):
                continue
            if file.is_file() and is_mentioned(file, self.folder, besides):
                kept.append(file)
            else:
                self._remove_if_ours(name, inode)
        self.warn_of_kept(kept, "another file may use it")

    def _remove_if_ours(self, name: str, inode: int | None) -> None:
        file = self.folder / name
        if self._is_ours(name, inode):
            try:
                file.rmdir() if file.is_dir() else file.unlink()
            except OSError as error:
                if not file.is_dir():  # a folder stays as long as something is in it
                    reason = error.strerror or error
                    _LOG.warning("%s: is no longer used but cannot be removed (%s)", file, reason)

    def _is_ours(self, name: str, inode: int | None) -> bool:
        """Whether the name is in the folder and has what was noted, not another file since."""
        parts = PurePosixPath(name).parts
        file = self.folder / name
        if not parts or ".." in parts or "\0" in name or not _is_below(file.parent, self.folder):
            return False
        try:
            status = os.lstat(file)
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            return False
        if inode is None:  # killed before it was noted: then nothing was written to it
            empty = status.st_size == 0 or stat.S_ISDIR(status.st_mode)
            return empty or TEMPORARY.fullmatch(file.name) is not None
        return status.st_ino == inode or TEMPORARY.fullmatch(file.name) is not None


@contextlib.contextmanager
def held(path: Path) -> Iterator[Journal]:
    """The journal of the replacement of ``path``, while no other process has it. What is noted in
    it is named by paths in its folder.

    Waits for another process that writes ``path``. Cleans up behind one that was killed, and at the
    end behind this one. Where the file system has no locks it says so and goes on without: then two
    runs at a time may still lose the data of one, and what a kill leaves stays.
    Raises OSError where its file cannot be made.
    """
    file = path.parent / _lock_name(path)
    handle = _locked(path, file)
    try:
        if handle is not None:
            left = Journal(path, handle)
            left.read()
            left.finish()
            os.ftruncate(handle, 0)
        journal = Journal(path, handle)
        try:
            yield journal
        finally:
            journal.finish()
            if handle is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file)
    finally:
        if handle is not None:
            os.close(handle)


def _lock_name(path: Path) -> str:
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f".{path.name[:40]}.{digest}.lock"


def _locked(path: Path, file: Path) -> int | None:
    """The descriptor of the journal, locked; None where there are no locks."""
    if fcntl is None:
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    waits = False
    while True:
        handle = os.open(file, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise NormswapError(f"{path}: cannot be locked; remove {file}, which is no file")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    _LOG.warning("%s: another process is writing it; waiting for that", path)
                    waits = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_ino == _inode(file):  # else the run that had it has removed it
                return handle
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _LOG.warning(
                    "%s: its file system has no locks; write it from one process at a time", path
                )
                with contextlib.suppress(OSError):
                    os.unlink(file)
                os.close(handle)
                return None
            os.close(handle)
            raise
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
