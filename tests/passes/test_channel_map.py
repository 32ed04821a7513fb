"""Where a channel axis goes through operators that move values: checked against the values."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from normswap.graph.onnx import OnnxGraph
from normswap.io.onnx_model import model_from_onnx
from normswap.passes import Fold
from normswap.passes.base import Refusal
from normswap.passes.channel_map import axis_after, axis_before
from tests.graph.onnx_text import onnx_graph

SIZES = (2, 3, 4, 4)  # two axes of equal size: N == C


@st.composite
def moves(draw: st.DrawFn) -> tuple[str, dict[str, np.ndarray]]:
    """One operator on a float[2,3,4,4] value ``x``, and its constants."""
    kind = draw(st.sampled_from(["transpose", "reshape", "slice", "gather", "mean", "unsqueeze"]))
    axis = draw(st.integers(0, 3))
    if kind == "transpose":
        perm = draw(st.permutations(range(4)))
        return f"y = Transpose<perm = [{', '.join(map(str, perm))}]>(x)", {}
    if kind == "reshape":
        shapes = [(6, 4, 4), (2, 12, 4), (2, 3, 16), (24, 4), (2, 3, 2, 2, 4), (2, 3, 4, 2, 2)]
        return "y = Reshape(x, s)", {"s": np.array(draw(st.sampled_from(shapes)))}
    if kind == "slice":
        constants = {"a": np.array([0]), "b": np.array([1]), "c": np.array([axis])}
        return "y = Slice(x, a, b, c)", constants
    if kind == "gather":
        index = draw(st.sampled_from([np.array(0), np.array([1, 0]), np.array([[0], [1]])]))
        return f"y = Gather<axis = {axis}>(x, i)", {"i": index}
    if kind == "mean":
        keep = draw(st.integers(0, 1))
        return f"y = ReduceMean<keepdims = {keep}>(x, a)", {"a": np.array([axis])}
    return "y = Unsqueeze(x, a)", {"a": np.array([draw(st.integers(0, 4))])}


@settings(max_examples=300)
@given(move=moves(), axis=st.integers(0, 3))
def test_the_axis_is_where_the_map_shows(
    move: tuple[str, dict[str, np.ndarray]], axis: int
) -> None:
    body, constants = move
    graph = onnx_graph(f"(float[2,3,4,4] x) => (float y) {{ {body} }}", constants)
    (node,) = graph.nodes
    x = np.random.default_rng(0).standard_normal(SIZES)
    scale = np.arange(1, SIZES[axis] + 1, dtype=np.float64)

    def run(array: np.ndarray) -> np.ndarray:
        return graph.evaluate(graph.outputs, {graph.inputs[0]: array}, np.float64)[0]

    shape = [1] * 4
    shape[axis] = -1
    before, after = run(x), run(x * scale.reshape(shape))
    try:
        moved = axis_after(node, axis)
    except Refusal:
        return  # it may refuse; what it answers has to be right
    expected = np.ones(before.ndim, int)
    expected[moved] = -1
    np.testing.assert_allclose(after, before * scale.reshape(expected), rtol=1e-12)
    assert axis_before(node, moved) == axis or node.data_input().shape[axis] == 1  # type: ignore[index]


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, dict[str, np.ndarray]]:
    """A BatchNorm with its channels on any axis, moves behind it, and a Linear that reads them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    perm = draw(st.permutations(range(3)))
    text = f"h = Relu(x) a = Transpose<perm = [{', '.join(map(str, perm))}]>(h) "
    sizes = [(2, 4, 4)[i] for i in perm]
    text += "b = BatchNormalization<epsilon = 0.001>(a, g, o, m, v) "
    channels = sizes[1]
    last = "b"
    for number in range(draw(st.integers(0, 3))):
        again = draw(st.permutations(range(3)))
        text += f"t{number} = Transpose<perm = [{', '.join(map(str, again))}]>({last}) "
        sizes, last = [sizes[i] for i in again], f"t{number}"
    text += f"y = MatMul({last}, w) "
    constants = {name: random.standard_normal(channels) for name in "gom"}
    constants |= {"v": random.random(channels) + 0.1, "w": random.standard_normal((sizes[-1], 3))}
    return text, {k: a.astype(np.float32) for k, a in constants.items()}


@settings(max_examples=200)
@given(chain=chains())
def test_fold_is_the_same_function_or_a_refusal(chain: tuple[str, dict[str, np.ndarray]]) -> None:
    text, constants = chain
    graph: OnnxGraph = onnx_graph(f"(float[2,4,4] x) => (float y) {{ {text} }}", constants)
    model = model_from_onnx(graph.model, "chain")
    result = Fold()(model)
    x = {"x": np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)}
    before, after = model.run(x, np.float64)["y"], result.model.run(x, np.float64)["y"]
    np.testing.assert_allclose(after, before, atol=2e-6 * np.abs(before).max(), rtol=0)
    assert result.modified == (not result.skipped)
