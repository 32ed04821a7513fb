"""Programs that take torch too long to rebuild."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import normswap as ns
from normswap import NormswapError
from normswap.io.pt2 import program
from normswap.io.pt2.deadline import TooLong, deadline


def test_a_block_ends_when_its_time_is_over() -> None:
    def endless() -> None:
        while True:
            try:
                time.monotonic()
            except Exception:  # what libraries do
                continue

    with pytest.raises(TooLong), deadline(0.2):
        endless()
    with deadline(0.2):
        time.sleep(0.5)  # is no work
    for _ in range(1000):
        time.monotonic()


def test_an_error_of_the_interrupted_block_is_no_other_reason() -> None:
    def endless() -> None:
        try:
            while True:
                time.monotonic()
        except BaseException as error:  # what torch's solver of sizes does
            raise AssertionError("a size must not be None") from error

    with pytest.raises(TooLong), deadline(0.2):
        endless()
    with pytest.raises(AssertionError, match="by itself"), deadline(5):
        raise AssertionError("by itself")


def _nested(levels: int) -> str:
    size = "Symbol('s77', positive=True, integer=True)"
    for level in range(levels):
        size = f"FloorDiv(Add({size}, Mod({size}, Integer({level + 5}))), Integer({level + 3}))"
    return size


def test_sizes_that_take_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, whole, slow = nn.LayerNorm(4).eval(), tmp_path / "m.pt2", tmp_path / "slow.pt2"
    ns.save(ns.load(net, example_inputs=(torch.randn(2, 4),)), whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(slow, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if "/models/" in name:
                document = json.loads(content, object_hook=_slower)
                content = json.dumps(document).encode()
            changed.writestr(name, content)
    monkeypatch.setattr(program, "_SECONDS", 0.1)  # of a second or so, on a fast machine
    monkeypatch.setattr(program, "_BYTES_A_SECOND", 1e9)
    with pytest.raises(NormswapError, match=r"slow\.pt2: the sizes in its program take"):
        ns.load(slow)


def _slower(item: dict[str, object]) -> dict[str, object]:
    return {**item, "expr_str": _nested(7)} if "expr_str" in item else item
