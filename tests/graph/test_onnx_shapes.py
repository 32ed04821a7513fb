"""Shapes that a graph computes from shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normswap.graph.onnx.graph import read_graph
from tests.graph.onnx_text import onnx_graph

CONSTANTS = {
    "one": np.array([1]),
    "three": np.array([3]),
    "heads": np.array([2]),
    "zero": np.array(0),
    "axis": np.array([0]),
    "ones": np.ones((1, 1, 6), np.float32),
}
# The sizes of a Reshape go through operators that ONNX's inference does not follow.
RESHAPED = (
    "(float[B,6,4] x) => (float y) { s = Shape(x) b = Gather<axis = 0>(s, zero) "
    "u = Unsqueeze(b, axis) m = Mul(u, heads) f = Cast<to = 1>(m) g = Cast<to = 7>(f) "
    "c = Concat<axis = 0>(g, three, minus) r = Reshape(x, c) y = Relu(r) }"
)
# What is expanded is read again, so that its sizes are known a stage later.
STAGES = (
    "(float[B,6,4] x) => (float y) { s = Shape<start = 0, end = 1>(x) "
    "e = Where(yes, s, one) c = Concat<axis = 0>(e, one, one) z = Expand(ones, c) "
    "t = Shape(z) d = Mod(t, many) a = Add(d, t) w = Where(all, a, t) y = Expand(z, w) }"
)


def test_sizes_that_are_computed_are_known() -> None:
    graph = onnx_graph(RESHAPED, {**CONSTANTS, "minus": np.array([-1])})
    assert graph.value("r").shape == (4, 3, 4)
    assert graph.value("y").shape == (4, 3, 4)
    assert graph.value("y").dtype == np.float32


def test_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normswap.graph.onnx.shapes._node_by_node", lambda *_: {})
    more = {"yes": np.array([True]), "many": np.array(5), "all": np.array([False] * 3)}
    graph = onnx_graph(STAGES, {**CONSTANTS, **more})
    assert graph.value("z").shape == (2, 1, 6)
    assert graph.value("y").shape == (2, 1, 6)


def test_large_constants_are_not_read_for_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normswap.graph.onnx.shapes._node_by_node", lambda *_: {})
    text = "(float[B,4] x) => (float y) { i = Gather<axis = 0>(t, zero) y = Reshape(x, i) }"
    shapes = {
        rows: onnx_graph(text, {"t": np.full((rows, 1), 8), "zero": np.array(0)}).value("y").shape
        for rows in (5, 500)
    }
    assert shapes == {5: (8,), 500: None}


def test_shapes_of_an_operator_that_inference_does_not_know_come_from_a_run() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]> test
    (float[B,6,4] x) => (float y) {
      s = Shape(x) r = Reshape(x, s) g = com.microsoft.QuickGelu(r) y = Softmax<axis = -1>(g)
    }"""
    graph = read_graph(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    assert graph.value("g").shape == graph.value("y").shape == (2, 6, 4)
    assert graph.nodes[-1].attributes["axis"] == 2  # known once the rank is
