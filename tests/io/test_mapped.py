"""Parts of mapped files, copied by the system or by hand."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normswap.io.mapped import MappedFile, stream

CONTENT = np.random.default_rng(0).bytes(3_000_001)
SPANS = [(0, len(CONTENT)), (5, 2_000_003), (4097, 4099), (1_000_000, len(CONTENT))]


def mapped(folder: Path) -> MappedFile:
    path = folder / "source"
    path.write_bytes(CONTENT)
    with open(path, "rb") as file:
        mapping = MappedFile(file.fileno())
    path.unlink()  # it is read all the same
    return mapping


def copied(folder: Path, mapping: MappedFile) -> bytes:
    with open(folder / "copy", "wb") as out:
        for start, end in SPANS:
            out.write(b"between")
            stream(mapping, start, end, out)
    return (folder / "copy").read_bytes()


def expected() -> bytes:
    return b"".join(b"between" + CONTENT[start:end] for start, end in SPANS)


def test_every_byte_is_copied(tmp_path: Path) -> None:
    assert copied(tmp_path, mapped(tmp_path)) == expected()


def test_what_is_no_plain_file_gets_them_through_its_own_write(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "copy.gz", "wb", 1) as out:  # has the descriptor of the file below
        stream(mapped(tmp_path), 0, len(CONTENT), out)
    assert gzip.decompress((tmp_path / "copy.gz").read_bytes()) == CONTENT


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system copies no ranges")
@pytest.mark.parametrize("ends", ["refuses", "stops"])
def test_what_the_system_does_not_copy_is_copied_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    system, calls = os.copy_file_range, []

    def some(source: int, target: int, count: int, at: int) -> int:
        calls.append(at)
        if len(calls) % 3:
            return system(source, target, min(count, 100_000), at)
        if ends == "stops":
            return 0
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", some)
    assert copied(tmp_path, mapped(tmp_path)) == expected()
    assert len(calls) >= 9


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system copies no ranges")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        copied(tmp_path, mapped(tmp_path))


def test_the_descriptor_ends_with_the_mapping(tmp_path: Path) -> None:
    mapping = mapped(tmp_path)
    descriptor = mapping.descriptor
    os.fstat(descriptor)
    del mapping
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
