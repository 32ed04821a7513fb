"""Commands on a small file keep within bounds, and it is seen where they do not."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from normswap.graph.onnx import nodes
from tests.fuzz import bounded

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

_TEXT = """<ir_version: 8, opset_import: ["": 17]>
small (float[b,4,8] x) => (float[b,4,8] y)
    <int64 turns = {TURNS}, float[8] gamma = {1,2,3,4,5,6,7,8}> {
    z = LayerNormalization<axis = -1>(x, gamma)
    w = Loop(turns, , x) <body = turn (int64 i, bool go, float[b,4,8] before)
        => (bool on, float[b,4,8] after) { on = Identity(go) after = Neg(before) }>
    y = Add(z, w)
}"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """It would run its loop for ever."""
    return _written(tmp_path / "m.onnx", 1 << 60)


def _written(path: Path, turns: int) -> Path:
    onnx.save(onnx.parser.parse_model(_TEXT.replace("TURNS", str(turns))), path)
    return path


def test_a_small_file_is_soon_done_with(tmp_path: Path) -> None:
    found = bounded.ended(_written(tmp_path / "m.onnx", 3))
    assert [end.command for end in found] == ["inspect", "swap", "fold", "validate"]
    assert not [str(end) for end in found if end.wrong]
    assert [end.status for end in found] == [0, 0, 1, 0], found  # there is nothing to fold


def test_a_loop_is_stopped_within_the_bound(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes.LOOP_SECONDS < 0.75 * bounded.CPU_SECONDS
    monkeypatch.setattr(nodes, "LOOP_SECONDS", 0.3)
    found = bounded.ended(file)
    assert not [str(end) for end in found if end.wrong]
    assert "a loop in it may go on for ever" in found[-1].said


def test_what_breaks_a_bound_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    (end,) = bounded.ended(file, ["validate"])
    assert end.wrong == "more than 1 s of CPU"
    monkeypatch.setattr(bounded, "CPU_SECONDS", 20)
    monkeypatch.setattr(bounded, "MEMORY", 128 << 20)  # less than importing torch takes
    (end,) = bounded.ended(file, ["inspect"])
    assert end.wrong.startswith("more than 128 MiB")
