"""A model that never ends where it is run: a loop of 2^60 turns, as many as its input says."""

from __future__ import annotations

from pathlib import Path

import onnx

_TEXT = """<ir_version: 8, opset_import: ["": 17]>
endless (float[batch,4] x, int64[1] turns) => (float[batch,4] y) {
    count = Squeeze(turns)
    y = Loop(count, , x) <body = turn (int64 i, bool go, float[batch,4] before)
        => (bool on, float[batch,4] after) { on = Identity(go) after = Neg(before) }>
}"""


def endless(path: Path) -> Path:
    """Writes it: y is x or -x."""
    onnx.save(onnx.parser.parse_model(_TEXT), path)
    return path
