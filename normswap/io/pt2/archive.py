"""A strict reader of the zip archives that torch writes: every member stored, none compressed.

Because nothing is ever inflated and members may not overlap, an archive cannot hold more than
its file, and the bytes of a member can be used in place, mapped from the file.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

from normswap.errors import NormswapError

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
SAVE_AGAIN = "export it again with torch.export.save"
TRUST = "Pass --trust if you know where the file comes from"


class BadArchive(Exception):
    """``args[0]`` says what is wrong; it goes after the file's name."""


class Archive:
    """The members of an archive by name, without the root folder that torch puts them in.

    ``data``: the whole archive; ``directory``: the same as a file. Raises BadArchive unless every
    member is stored uncompressed, has a plain relative name of its own and lies inside the archive
    without overlapping another.
    """

    def __init__(self, data: memoryview, directory: io.BufferedIOBase) -> None:
        try:
            with zipfile.ZipFile(directory) as archive:
                infos = archive.infolist()
        except Exception as error:  # zipfile raises whatever a damaged directory leads to
            raise BadArchive("is not a zip archive, or is truncated") from error
        self._data = data
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._starts: dict[str, int] = {}
        roots = {info.filename.partition("/")[0] for info in infos}
        if len(roots) != 1:
            raise BadArchive("is not an archive written by torch")
        for info in infos:
            name = _plain_name(info)
            if name in self._infos:
                raise BadArchive(f"has two parts named {name}")
            self._infos[name] = info
            self._starts[name] = self._start(info)
        self._check_overlap()

    @property
    def names(self) -> list[str]:
        return list(self._infos)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def span(self, name: str) -> tuple[int, int]:
        """Offset and length in bytes of a member. Raises BadArchive if there is none."""
        if name not in self._infos:
            raise BadArchive(f"has no part {name}")
        return self._starts[name], self._infos[name].file_size

    def read(self, name: str) -> bytes:
        """A copy of a member, its checksum verified."""
        start, length = self.span(name)
        self.verify(name)
        return bytes(self._data[start : start + length])

    def verify(self, name: str) -> None:
        """Raises BadArchive unless the checksum of a member is right. Reads it, at 2 GB/s or so."""
        start, length = self.span(name)
        if zlib.crc32(self._data[start : start + length]) != self._infos[name].CRC:
            raise BadArchive(f"is damaged: the checksum of its part {name} does not match")

    def _start(self, info: zipfile.ZipInfo) -> int:
        at = info.header_offset
        header = bytes(self._data[at : at + _LOCAL_HEADER.size]) if at >= 0 else b""
        if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_MAGIC):
            raise BadArchive("is damaged: a part is not where the directory says")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start: int = at + _LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > len(self._data):
            raise BadArchive("is truncated: a part ends behind the end of the file")
        return start

    def _check_overlap(self) -> None:
        end = 0
        for name in sorted(self._infos, key=lambda n: self._infos[n].header_offset):
            if self._infos[name].header_offset < end:
                raise BadArchive(f"has parts that overlap ({name})")
            end = self._starts[name] + self._infos[name].file_size


def open_archive(path: Path) -> tuple[Archive, mmap.mmap]:
    """The archive at ``path`` and its private mapping: writing to it does not change the file.

    The mapping stays valid as long as something refers to it, even after the file was replaced.
    Raises NormswapError if ``path`` cannot be read, BadArchive for what is in it.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise BadArchive("is empty")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return Archive(memoryview(mapping), file), mapping
    except OSError as error:
        raise NormswapError(f"{path}: cannot be read ({error.strerror or error})") from error


def open_bytes(content: bytes) -> Archive:
    """The archive in ``content``."""
    return Archive(memoryview(content), io.BytesIO(content))


def refuse(path: Path, part: str, what: str = "") -> NoReturn:
    """Raises NormswapError: the content ``what`` of ``part`` could run code."""
    named = f" ({what})" if what else ""
    raise NormswapError(
        f"{path}: its part {part} holds something other than tensors{named}; "
        f"it was not loaded. {TRUST}"
    )


def _plain_name(info: zipfile.ZipInfo) -> str:
    name = info.filename.partition("/")[2]
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or not all(p.strip(".") for p in parts):
        raise BadArchive(f"has a part with an unusable name ({info.filename[:80]!r})")
    if info.flag_bits & 0x1:
        raise BadArchive(f"has an encrypted part {name}")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise BadArchive(f"has a compressed part {name}, which torch never writes")
    return name
