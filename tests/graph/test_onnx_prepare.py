"""Parameters that are computed from fixed sizes become constants; those of the batch do not."""

from __future__ import annotations

import numpy as np
import pytest

from normswap.graph.graph import Node
from normswap.graph.onnx.graph import OnnxGraph
from tests.graph.onnx_text import onnx_graph

HALF = (
    "(float[B,6,4] x) => (float y) { s = Shape(x) d = Gather<axis = 0>(s, which) "
    "h = Div(d, two) u = Unsqueeze(h, zeros) y = Slice(x, zeros, u, axes) }"
)
PAD = (
    "(float[B,6,4] x) => (float y) { s = Shape(x) d = Gather<axis = 0>(s, which) "
    "m = Mod(d, four) u = Unsqueeze(m, zeros) f = ConstantOfShape(five) z = Cast<to = 7>(f) "
    "p = Concat<axis = 0>(z, u) y = Pad(x, p) }"
)
CONSTANTS = {
    "two": np.array(2),
    "four": np.array(4),
    "five": np.array([5]),
    "zeros": np.array([0]),
    "axes": np.array([1]),
}


def _graph(text: str, which: int) -> OnnxGraph:
    constants = {**CONSTANTS, "which": np.array(which)}
    return onnx_graph(text, {name: a for name, a in constants.items() if name in text})


def _last(graph: OnnxGraph) -> Node:
    (node,) = (n for n in graph.nodes if n.op in ("Slice", "Pad"))
    return node


@pytest.mark.parametrize(
    ("text", "name", "expected"), [(HALF, "ends", (3,)), (PAD, "pads", (0, 0, 0, 0, 0, 2))]
)
def test_what_comes_from_fixed_sizes_is_an_attribute(
    text: str, name: str, expected: tuple[int, ...]
) -> None:
    graph = _graph(text, 1)
    assert _last(graph).attributes[name] == expected
    assert [node.op for node in graph.nodes] == [_last(graph).op]  # nothing computes it any more
    for batch in (1, 5):
        x = np.random.default_rng(0).standard_normal((batch, 6, 4)).astype(np.float32)
        (y,) = graph.evaluate(graph.outputs, {graph.value("x"): x})
        wanted = x[:, :3] if text is HALF else np.pad(x, ((0, 0), (0, 0), (0, 2)))
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize(("text", "name"), [(HALF, "ends"), (PAD, "pads")])
def test_what_comes_from_the_batch_stays_computed(text: str, name: str) -> None:
    graph = _graph(text, 0)
    assert name not in _last(graph).attributes
    for batch in (4, 6):
        x = np.random.default_rng(0).standard_normal((batch, 6, 4)).astype(np.float32)
        (y,) = graph.evaluate(graph.outputs, {graph.value("x"): x})
        last = batch % 4
        wanted = x[:, : batch // 2] if text is HALF else np.pad(x, ((0, 0), (0, 0), (0, last)))
        np.testing.assert_array_equal(y, wanted)
