"""Raising the opset: nodes that mean the same stay, others are converted."""

from __future__ import annotations

import numpy as np
import pytest

from normswap.graph.onnx import opset as onnx_opset
from tests.graph.onnx_text import onnx_graph

SAME = (
    "(float[B,4] x) => (float[B,4] y) "
    "{ s = Shape(x) p = Pow(x, two) r = Reshape(p, s) y = Identity(r) }"
)
TWO = {"two": np.array(2, np.float32)}


def test_nodes_that_mean_the_same_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("onnxscript.version_converter.convert_version", never)
    graph = onnx_graph(SAME, TWO, opset=14)
    nodes = list(graph.model.graph)
    before = graph.whole()([np.eye(4, dtype=np.float32)])[0]
    graph.require("LayerNormalization")
    assert graph.opset == 17
    assert list(graph.model.graph) == nodes
    np.testing.assert_array_equal(graph.whole()([np.eye(4, dtype=np.float32)])[0], before)


@pytest.mark.parametrize(
    ("text", "constants", "opset"),
    [
        # axes became an input in opset 13
        ("(float[B,4] x) => (float[B] y) { y = Squeeze<axes = [1]>(z) z = Slice(x, a, b, b) }",
         {"a": np.array([0]), "b": np.array([1])}, 11),
        # Softmax coerced to two dimensions before 13
        ("(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }", {}, 11),
    ],
)  # fmt: skip
def test_others_are_converted(text: str, constants: dict[str, np.ndarray], opset: int) -> None:
    graph = onnx_graph(text, constants, opset=opset)
    shape = graph.inputs[0].shape
    x = np.random.default_rng(0).standard_normal(shape or ()).astype(np.float32)
    before = graph.whole()([x])[0]
    assert not onnx_opset._means_the_same(graph.model, 17, {})
    graph.require("LayerNormalization")
    assert graph.opset == 17
    np.testing.assert_allclose(graph.whole()([x])[0], before, rtol=1e-6)


def test_inside_a_branch_the_whole_is_converted() -> None:
    text = (
        "(float[B,4] x, bool c) => (float[B,4] y) { "
        "y = If(c) <then_branch = t () => (float[B,4] a) "
        "{ a = Identity(x) }, else_branch = e () => (float[B,4] b) { b = Neg(x) }> }"
    )
    graph = onnx_graph(text, opset=14)
    assert not onnx_opset._means_the_same(graph.model, 17, {})
    graph.require("LayerNormalization")
    assert graph.opset == 17
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(graph.whole()([x, np.array(False)])[0], -x)
