"""A disk that fills up while an output is written: one line, the old file, nothing left."""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from normswap.errors import NormswapError
from normswap.io.atomic import atomic_path
from normswap.io.pt2 import write_pt2
from tests.io import kills

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a fork of this process")


def write_arrays(out: Path, number: int) -> None:
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, x=np.full(kills.SIZE, number, np.float32))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "m.pt2": kills.write_program,
    "m.onnx": kills.write_in_place,
    "page.html": kills.write_text,
    "inputs.npz": write_arrays,
}


@pytest.mark.parametrize("limit", [0, 1000, 70_000])
@pytest.mark.parametrize("name", WRITERS)
def test_is_one_line(
    name: str, limit: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files ends in the same error as a disk without space."""
    path = tmp_path / name
    if name == "m.onnx":
        kills.source(tmp_path / "origin")
        kills.write_from(tmp_path / "origin" / "m.onnx", path, 0)
    else:
        kills.program()
        WRITERS[name](path, 0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fill_up() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(NormswapError) as caught:
            WRITERS[name](path, 1)
        assert "cannot be written (file too large)" in str(caught.value).lower()
        assert "\n" not in str(caught.value)

    kills.done(fill_up)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert capfd.readouterr().err == ""


def test_an_interrupt_within_torch_s_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised through torch's writer it would end the process."""

    class Interrupting:
        def write(self, _content: bytes) -> int:
            raise KeyboardInterrupt

    def save(_program: object, sink: io.RawIOBase, **_: object) -> None:
        sink._file = Interrupting()  # type: ignore[attr-defined]
        saved(_program, sink)

    saved = torch.export.save
    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(KeyboardInterrupt):
        write_pt2(kills.program(), tmp_path / "m.pt2")
    assert os.listdir(tmp_path) == []
