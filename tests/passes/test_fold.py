"""Each rule of the fold algebra, and each refusal, on small ONNX graphs."""

from __future__ import annotations

import numpy as np
import pytest

from normswap.graph.onnx import OnnxGraph
from normswap.io.onnx_model import model_from_onnx
from normswap.model import Model
from normswap.passes import Fold
from tests.graph.onnx_text import onnx_graph

C = 4
RANDOM = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


NORM = {
    "gamma": _normal(C),
    "beta": _normal(C),
    "mean": _normal(C),
    "var": np.abs(_normal(C)) + 0.1,
}
BN = "BatchNormalization<epsilon = 0.01>"
# A BatchNorm over the last axis of a [B, N, C] value: a -> b.
LAST = (
    f"t1 = Transpose<perm = [0, 2, 1]>(a) t2 = {BN}(t1, gamma, beta, mean, var) "
    f"b = Transpose<perm = [0, 2, 1]>(t2) "
)
W = {"w": _normal(C, 5), "u": _normal(5, C)}
BIAS = {"c": _normal(5)}


def _model(text: str, constants: dict[str, np.ndarray]) -> Model:
    used = {k: v for k, v in (NORM | W | BIAS | constants).items() if k in text}
    graph: OnnxGraph = onnx_graph(text, used)
    return model_from_onnx(graph.model, "test")


def _feeds(model: Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    shapes = {s.name: [3 if isinstance(d, str) else d for d in s.shape] for s in model.inputs}
    return {
        s.name: random.standard_normal(shapes[s.name]).astype(s.dtype)
        if s.dtype == np.float32
        else random.integers(0, 2, shapes[s.name])
        for s in model.inputs
    }


ROWS = "(float[B,6,4] x)"
FOLDABLE: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "into_a_linear": (f"{ROWS} => (float y) {{ a = Relu(x) {LAST} y = MatMul(b, w) }}", {}),
    "into_a_linear_with_bias": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} p = MatMul(b, w) y = Add(p, c) }}",
        {},
    ),
    "into_several_linears": (
        f"{ROWS} => (float y, float z) {{ a = Relu(x) {LAST} y = MatMul(b, w) "
        f"p = MatMul(b, w2) z = Add(p, c) }}",
        {"w2": _normal(C, 5)},
    ),
    "into_linears_that_share_a_weight": (
        f"{ROWS} => (float y, float z) {{ a = Relu(x) {LAST} y = MatMul(b, w) z = MatMul(a, w) }}",
        {},
    ),
    "through_the_class_token": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} g = Gather<axis = 1>(b, zero) "
        f"y = Gemm<transB = 1, alpha = 0.5, beta = 3.0>(g, w3, c) }}",
        {"zero": np.array(0), "w3": _normal(5, C)},
    ),
    "through_slice_squeeze_dropout": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} s = Slice(b, zeros, ones, ones) "
        f"q = Squeeze(s, ones) i = Identity(q) y = MatMul(i, w) }}",
        {"zeros": np.array([0]), "ones": np.array([1])},
    ),
    "through_reshape": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} r = Reshape(b, rows) y = MatMul(r, w) }}",
        {"rows": np.array([-1, C])},
    ),
    "through_pooling": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} m = ReduceMean<keepdims = 0>(b, one) "
        f"y = MatMul(m, w) }}",
        {"one": np.array([1])},
    ),
    "through_gather_nd": (
        f"(float[B,6,4] x, int64[5,2] i) => (float y) {{ a = Relu(x) {LAST} g = GatherND(b, i) "
        f"y = MatMul(g, w) }}",
        {},
    ),
    "through_split": (
        f"{ROWS} => (float y, float z) {{ a = Relu(x) {LAST} "
        f"p, q = Split<axis = 1, num_outputs = 2>(b) y = MatMul(p, w) z = MatMul(q, w) }}",
        {},
    ),
    "into_an_unpadded_conv": (
        f"(float[B,4,6,6] x) => (float y) {{ a = Relu(x) b = {BN}(a, gamma, beta, mean, var) "
        f"y = Conv(b, k, c) }}",
        {"k": _normal(5, C, 2, 2)},
    ),
    "up_into_a_linear": (
        f"(float[B,6,5] x) => (float y) {{ a = MatMul(x, u) {LAST} y = Relu(b) }}",
        {},
    ),
    "up_into_a_linear_with_bias": (
        f"(float[B,6,5] x) => (float y) {{ p = MatMul(x, u) a = Add(p, c4) {LAST} y = Relu(b) }}",
        {"c4": _normal(C)},
    ),
    "up_into_a_conv": (
        f"(float[B,3,6,6] x) => (float y) {{ a = Conv<pads = [1,1,1,1]>(x, k) "
        f"b = {BN}(a, gamma, beta, mean, var) y = Relu(b) }}",
        {"k": _normal(C, 3, 3, 3)},
    ),
    "up_into_patches_class_token_and_positions": (
        f"(float[B,3,4,4] x) => (float y) {{ n1 = Shape<start = 0, end = 1>(x) "
        f"s3 = Concat<axis = 0>(n1, tail) k = Conv<strides = [2,2]>(x, p) "
        f"f = Reshape(k, flat) t = Transpose<perm = [0, 2, 1]>(f) e = Expand(cls, s3) "
        f"h = Concat<axis = 1>(e, t) a = Add(h, pos) {LAST} n = Relu(b) y = Add(n, b) }}",
        {
            "p": _normal(C, 3, 2, 2),
            "flat": np.array([0, C, -1]),
            "cls": _normal(1, 1, C),
            "tail": np.array([1, C]),
            "pos": _normal(5, C),
        },
    ),
    "up_when_the_result_is_an_output": (
        f"(float[B,6,5] x) => (float b) {{ a = MatMul(x, u) {LAST} }}",
        {},
    ),
    "no_affine_and_ffn_order": (
        f"(float[B,6,4] x) => (float z) {{ a = Relu(x) {LAST} p = MatMul(b, w4) "
        f"t3 = Transpose<perm = [0, 2, 1]>(p) t4 = {BN}(t3, gamma, beta, mean, var) "
        f"t5 = Transpose<perm = [0, 2, 1]>(t4) z = Relu(t5) }}",
        {"w4": _normal(C, C)},
    ),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_folds_and_computes_the_same(name: str) -> None:
    text, constants = FOLDABLE[name]
    model = _model(text, constants)
    before = list(model.output_names)
    result = Fold()(model)
    assert result.modified
    assert not result.skipped
    assert all(node.op != "BatchNormalization" for node in result.model.graph.nodes)
    assert [v.name for v in result.model.graph.outputs] == before
    feeds = _feeds(model)
    for dtype, bound in ((np.float64, 3e-7), (None, 2e-5)):
        expected, got = model.run(feeds, dtype), result.model.run(feeds, dtype)
        for output in before:
            scale = np.abs(expected[output]).max()
            np.testing.assert_allclose(got[output], expected[output], atol=bound * scale, rtol=0)


REFUSED: dict[str, tuple[str, dict[str, np.ndarray], str]] = {
    "training_mode": (
        f"{ROWS} => (float y) {{ a = Relu(x) "
        + LAST.replace("epsilon = 0.01>", "epsilon = 0.01, training_mode = 1>").replace(
            "t2 =", "t2, rm, rv ="
        )
        + "y = MatMul(b, w) }",
        {},
        "training mode",
    ),
    "nonlinear_reader": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} y = Relu(b) }}",
        {},
        "Relu 'y' reads it",
    ),
    "one_reader_cannot": (
        f"{ROWS} => (float y, float z) {{ a = Relu(x) {LAST} y = MatMul(b, w) z = Relu(b) }}",
        {},
        "Relu 'z' reads it",
    ),
    "raw_output": (
        f"{ROWS} => (float y, float b) {{ a = Relu(x) {LAST} y = MatMul(b, w) }}",
        {},
        "'b' is an output of the model",
    ),
    "padded_conv": (
        f"(float[B,4,6,6] x) => (float y) {{ a = Relu(x) b = {BN}(a, gamma, beta, mean, var) "
        f"y = Conv<pads = [1,1,1,1]>(b, k, c) }}",
        {"k": _normal(5, C, 2, 2)},
        "pads with zeros",
    ),
    "wrong_axis_though_sizes_agree": (  # N == C
        f"(float[B,4,4] x) => (float y) {{ a = Relu(x) b = {BN}(a, gamma, beta, mean, var) "
        f"y = MatMul(b, w) }}",
        {},
        "multiplies along another axis",
    ),
    "reshape_that_splits_channels": (
        f"{ROWS} => (float y) {{ a = Relu(x) {LAST} r = Reshape(b, s) y = MatMul(r, h) }}",
        {"s": np.array([0, 6, 2, 2]), "h": _normal(2, 2)},
        "does not keep its channels whole",
    ),
    "writer_read_elsewhere": (
        f"(float[B,6,5] x) => (float y, float z) {{ a = MatMul(x, u) {LAST} y = Relu(b) "
        f"z = Relu(a) }}",
        {},
        "'a' is read elsewhere too",
    ),
    "straight_from_the_input": (
        f"(float[B,6,4] a) => (float y) {{ {LAST} y = Relu(b) }}",
        {},
        "'a' is an input of the model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_the_reason_and_changes_nothing(name: str) -> None:
    text, constants, reason = REFUSED[name]
    model = _model(text, constants)
    result = Fold()(model)
    assert not result.modified
    assert result.model is model
    ((_, why),) = result.skipped
    assert reason in why
