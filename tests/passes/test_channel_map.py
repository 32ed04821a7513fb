"""Where a map goes through operators that move values: checked against the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normswap.graph.onnx.graph import OnnxGraph
from normswap.io.load import model_from_onnx
from normswap.passes import Fold
from normswap.passes.algebra.channel_map import ChannelMap, embedded
from normswap.passes.algebra.place import Place
from normswap.passes.algebra.rules import RULES
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal
from tests.effort import examples_of
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


def _map(data: st.DataObject, axis: int) -> ChannelMap:
    """A diagonal or a full map along ``axis``, different at each place of another one or not."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = SIZES[axis]
    full = data.draw(st.booleans())
    linear = random.standard_normal((size, size) if full else size)
    change = ChannelMap.along(linear, random.standard_normal(size), axis, len(SIZES))
    other = data.draw(st.integers(0, 3))
    if other != axis and data.draw(st.booleans()):
        change = embedded(change, other, np.array([0]), SIZES[other])
    return change


@settings(max_examples=examples_of(100, 400))
@given(data=st.data(), move=moves(), axis=st.integers(0, 3))
def test_a_map_goes_where_the_values_go(
    data: st.DataObject, move: tuple[str, dict[str, np.ndarray]], axis: int
) -> None:
    body, constants = move
    graph = onnx_graph(f"(float[2,3,4,4] x) => (float y) {{ {body} }}", constants)
    (node,) = graph.nodes
    change = _map(data, axis)
    x = np.random.default_rng(0).standard_normal(SIZES)

    def run(array: np.ndarray) -> np.ndarray:
        return graph.evaluate(graph.outputs, {graph.inputs[0]: array}, np.float64)[0]

    before, after = run(x), run(change.apply(x))
    maps = RULES[node.op].maps
    assert maps is not None
    edits, value = WeightEdits(graph), node.data_input()
    try:
        moved = dict(maps(Place(edits, node, {value: change})))[node.output]
    except Refusal:
        return  # it may refuse; what it answers has to be right
    np.testing.assert_allclose(moved.apply(before), after, atol=1e-12)
    for part in (False, True):
        try:
            back = dict(maps(Place(edits, node, {node.output: moved}, part=part)))[value]
        except Refusal:
            continue
        np.testing.assert_allclose(run(back.apply(x)), after, atol=1e-12)


@pytest.mark.parametrize("full", [False, True])
def test_a_map_and_its_inverse(full: bool) -> None:
    random = np.random.default_rng(0)
    linear = random.standard_normal((4, 4) if full else 4)
    change = ChannelMap.along(linear, random.standard_normal(4), 1, 3)
    x = random.standard_normal((2, 4, 3))
    back = change.invertible().inverted()
    np.testing.assert_allclose(back.apply(change.apply(x)), x, atol=1e-12)
    np.testing.assert_allclose(back.inverted().apply(x), change.apply(x), atol=1e-12)
    with pytest.raises(Refusal, match="inverse"):
        change.inverted()


@pytest.mark.parametrize("linear", [np.array([1.0, 0]), np.ones((2, 2))])
def test_a_map_that_loses_something_has_no_inverse(linear: np.ndarray) -> None:
    with pytest.raises(Refusal, match="nothing can undo"):
        ChannelMap.along(linear, np.zeros(2), 0, 1).invertible()


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


@settings(max_examples=examples_of(50, 200))
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


@pytest.mark.parametrize("number", [0.0, np.nan, np.inf])
def test_what_no_number_is_known_of_has_no_condition(number: float) -> None:
    matrix = np.eye(3)
    matrix[1] = number
    assert ChannelMap(matrix, np.zeros(3), None, 0).condition == np.inf
