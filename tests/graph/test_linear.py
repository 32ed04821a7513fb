"""Every spelling of a Linear reads as [out, in] and takes a new weight and bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normswap.graph.fx.graph import FxGraph
from normswap.graph.graph import Graph
from normswap.graph.linear import Linear, linear_at, linear_writing
from tests.graph.fx_capture import captured
from tests.graph.onnx_text import onnx_graph

IN, OUT = 3, 5
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((OUT, IN)).astype(np.float32)
BIAS = RANDOM.standard_normal(OUT).astype(np.float32)
X3 = RANDOM.standard_normal((2, 4, IN)).astype(np.float32)
X2 = X3[0]
X4 = RANDOM.standard_normal((2, IN, 4, 4)).astype(np.float32)

_ROWS = "(float[B,4,3] x) => (float[B,4,5] y)"
_MATRIX = "(float[B,3] x) => (float[B,5] y)"
# name: (text, initializers, input, whether there is a bias)
SPELLINGS: dict[str, tuple[str, dict[str, np.ndarray], np.ndarray, bool]] = {
    "matmul": (f"{_ROWS} {{ y = MatMul(x, w) }}", {"w": WEIGHT.T}, X3, False),
    "matmul_add": (
        f"{_ROWS} {{ p = MatMul(x, w) y = Add(p, b) }}",
        {"w": WEIGHT.T, "b": BIAS},
        X3,
        True,
    ),
    "add_matmul": (
        f"{_ROWS} {{ p = MatMul(x, w) y = Add(b, p) }}",
        {"w": WEIGHT.T, "b": BIAS.reshape(1, 1, OUT)},
        X3,
        True,
    ),
    "scalar_bias": (
        f"{_ROWS} {{ p = MatMul(x, w) y = Add(p, b) }}",
        {"w": WEIGHT.T, "b": np.array(0.5, np.float32)},
        X3,
        True,
    ),
    "matmul_on_the_left": (
        "(float[B,3,4] x) => (float[B,5,4] y) { p = MatMul(w, x) y = Add(p, b) }",
        {"w": WEIGHT, "b": BIAS.reshape(OUT, 1)},
        X3.transpose(0, 2, 1),
        True,
    ),
    "matmul_on_the_left_without_bias": (
        "(float[B,3,4] x) => (float[B,5,4] y) { y = MatMul(w, x) }",
        {"w": WEIGHT},
        X3.transpose(0, 2, 1),
        False,
    ),
    "gemm_of_transposed_data": (
        "(float[3,B] x) => (float[B,5] y) { y = Gemm<transA = 1, alpha = 2.0>(x, w, b) }",
        {"w": WEIGHT.T, "b": BIAS},
        X2.T,
        True,
    ),
    "gemm_on_the_left": (
        "(float[B,3] x) => (float[5,B] y) { y = Gemm<transB = 1, beta = 2.0>(w, x, b) }",
        {"w": WEIGHT, "b": BIAS.reshape(OUT, 1)},
        X2,
        True,
    ),
    "matmul_of_transpose": (
        f"{_ROWS} {{ t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }}",
        {"w": WEIGHT},
        X3,
        False,
    ),
    "matmul_of_identity": (
        f"{_ROWS} {{ t = Identity(w) p = MatMul(x, t) c = Identity(b) y = Add(p, c) }}",
        {"w": WEIGHT.T, "b": BIAS},
        X3,
        True,
    ),
    "matmul_of_cast": (
        f"{_ROWS} {{ t = Cast<to = 1>(w) y = MatMul(x, t) }}",
        {"w": WEIGHT.T.astype(np.float64)},
        X3,
        False,
    ),
    "gemm": (f"{_MATRIX} {{ y = Gemm(x, w, b) }}", {"w": WEIGHT.T, "b": BIAS}, X2, True),
    "gemm_trans_b": (f"{_MATRIX} {{ y = Gemm<transB = 1>(x, w) }}", {"w": WEIGHT}, X2, False),
    "gemm_alpha_beta": (
        f"{_MATRIX} {{ y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b) }}",
        {"w": WEIGHT, "b": BIAS},
        X2,
        True,
    ),
    "conv_1x1": (
        "(float[B,3,4,4] x) => (float[B,5,4,4] y) { y = Conv(x, w, b) }",
        {"w": WEIGHT.reshape(OUT, IN, 1, 1), "b": BIAS},
        X4,
        True,
    ),
}


def _functional(kind: str) -> nn.Module:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.from_numpy(WEIGHT))
            self.bias = nn.Parameter(torch.from_numpy(BIAS))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if kind == "linear":
                return nn.functional.linear(x, self.weight, self.bias)
            if kind == "linear_no_bias":
                return nn.functional.linear(x, self.weight)
            if kind == "addmm":
                return torch.addmm(self.bias, x, self.weight.t(), beta=0.5, alpha=2)
            return x @ self.weight.t() + self.bias

    return Module()


FX_SPELLINGS = {"linear": X3, "linear_no_bias": X3, "addmm": X2, "matmul_add": X3}


def _graph(name: str) -> tuple[Graph, np.ndarray]:
    if name.startswith("fx_"):
        kind = name.removeprefix("fx_")
        return FxGraph(captured(_functional(kind), FX_SPELLINGS[kind])), FX_SPELLINGS[kind]
    text, constants, x, _ = SPELLINGS[name]
    return onnx_graph(text, constants), x


ALL = [*SPELLINGS, *(f"fx_{kind}" for kind in FX_SPELLINGS)]


def _found(graph: Graph) -> Linear:
    found = [lin for node in graph.nodes if (lin := linear_at(graph, node)) is not None]
    assert len(found) == 1
    return found[0]


def _apply(linear: Linear, x: np.ndarray) -> np.ndarray:
    moved = np.moveaxis(x.astype(np.float64), linear.axis, -1) @ linear.weight.T
    moved = moved if linear.bias is None else moved + linear.bias
    return np.moveaxis(moved, -1, linear.output_axis)


@pytest.mark.parametrize("name", ALL)
def test_reads_what_the_graph_computes(name: str) -> None:
    graph, x = _graph(name)
    linear = _found(graph)
    assert linear.weight.shape == (OUT, IN)
    assert linear.weight.dtype == np.float64
    assert linear.output in graph.outputs
    y = graph.evaluate(graph.outputs, {graph.inputs[0]: x}, np.float64)[0]
    np.testing.assert_allclose(_apply(linear, x), y, rtol=1e-12, atol=1e-12)
    back = linear_writing(graph, linear.output)
    assert back is not None
    assert back.product is linear.product


@pytest.mark.parametrize("name", ALL)
def test_takes_a_new_weight_and_bias(name: str) -> None:
    graph, x = _graph(name)
    untouched = graph.copy()
    weight, bias = np.full((OUT, IN), 0.25), np.arange(OUT, dtype=np.float64)
    weight[1, 2] = -3
    linear = _found(graph)
    linear.write(weight, bias)
    graph.prune()
    again = _found(graph)
    np.testing.assert_array_equal(again.weight, weight)
    np.testing.assert_array_equal(again.bias, bias)
    feeds = {graph.inputs[0]: x}
    for dtype in (None, np.float64):
        y = graph.evaluate(graph.outputs, feeds, dtype)[0]
        np.testing.assert_allclose(y, _apply(again, x), rtol=1e-6, atol=1e-6)
    assert not np.array_equal(_found(untouched).weight, weight)


@pytest.mark.parametrize("kind", ["onnx", "fx"])
def test_a_product_of_matrices_gains_its_bias_in_one_operator(kind: str) -> None:
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Parameter(torch.from_numpy(WEIGHT.T.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.proj

    graph: Graph = (
        onnx_graph("(float[B,3] x) => (float[B,5] y) { y = MatMul(x, proj) }", {"proj": WEIGHT.T})
        if kind == "onnx"
        else FxGraph(captured(Projection(), X2))
    )
    outputs = [v.name for v in graph.outputs]
    _found(graph).write(2.0 * WEIGHT, BIAS.astype(np.float64))
    graph.prune()
    assert [node.op for node in graph.nodes] == ["Gemm"]
    assert graph.nodes[0].data_input(1).name == "proj"
    if kind == "onnx":
        assert [v.name for v in graph.outputs] == outputs
    y = graph.evaluate(graph.outputs, {graph.inputs[0]: X2})[0]
    np.testing.assert_allclose(y, X2 @ (2 * WEIGHT.T) + BIAS, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(_found(graph.copy()).bias, BIAS)


def test_a_shared_weight_is_changed_for_one_user_only() -> None:
    graph = onnx_graph(
        "(float[B,3] x) => (float[B,3] y) { a = MatMul(x, w) y = MatMul(a, w) }",
        {"w": WEIGHT[:IN].T},
    )
    first = linear_at(graph, graph.nodes[0])
    assert first is not None
    first.write(np.zeros((IN, IN)), None)
    second = linear_at(graph, graph.nodes[1])
    assert second is not None
    np.testing.assert_array_equal(second.weight, WEIGHT[:IN])


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (f"{_ROWS} {{ p = MatMul(x, w) y = Add(p, b) }}", {"b": np.ones((4, 1), np.float32)}),
        (f"{_ROWS} {{ p = MatMul(x, w) y = Add(p, b) }}", {"b": np.ones((4, OUT), np.float32)}),
    ],
)
def test_an_add_over_other_axes_is_no_bias(text: str, constants: dict[str, np.ndarray]) -> None:
    graph = onnx_graph(text, {"w": WEIGHT.T, **constants})
    linear = _found(graph)
    assert linear.bias is None
    assert linear.output is graph.value("p")


@pytest.mark.parametrize(
    "text",
    [
        "(float[B,4,3] x, float[3,5] w) => (float[B,4,5] y) { y = MatMul(x, w) }",
        "(float[B,3] x, float[5] c) => (float[B,5] y) { y = Gemm(x, w, c) }",
        "(float[B,3] x) => (float[B,5] y) { y = Gemm<beta = 0.0>(x, w) }",
    ],
)
def test_other_products_are_no_linear(text: str) -> None:
    constants = {} if "float[3,5] w" in text else {"w": WEIGHT.T}
    graph = onnx_graph(text, constants)
    assert all(linear_at(graph, node) is None for node in graph.nodes)


def test_a_padded_or_strided_conv_is_no_linear() -> None:
    for attributes in ("pads = [1,1,1,1]", "strides = [2,2]"):
        text = f"(float[B,3,4,4] x) => (float y) {{ y = Conv<{attributes}>(x, w) }}"
        graph = onnx_graph(text, {"w": WEIGHT.reshape(OUT, IN, 1, 1)})
        assert linear_at(graph, graph.nodes[0]) is None
