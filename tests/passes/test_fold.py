"""Each rule of the fold algebra, and each refusal, on small ONNX graphs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from normswap.graph.onnx.graph import OnnxGraph
from normswap.io.load import model_from_onnx
from normswap.model import Model
from normswap.norms import locate
from normswap.passes import Fold
from tests.graph.onnx_text import onnx_graph
from tests.passes.fold_checks import check_fold

C = 4
RANDOM = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


NORM = {
    "gamma": _normal(C),
    "beta": _normal(C),
    "mean": _normal(C),
    "var": np.abs(_normal(C)) + 0.1,
}
BN = "BatchNormalization<epsilon = 0.0078125>"
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
        if s.dtype == np.float64
        else random.integers(0, 2, shapes[s.name])
        for s in model.inputs
    }


# A post-norm block: b -> v, in which b is read by a linear layer and by a sum.
BLOCK = (
    "h = MatMul(b, w1) r = Relu(h) f = MatMul(r, w2) s = Add(b, f) "
    f"t3 = Transpose<perm = [0, 2, 1]>(s) t4 = {BN}(t3, gamma, beta, mean, var) "
    "v = Transpose<perm = [0, 2, 1]>(t4) "
)
BLOCK_CONSTANTS = {"w1": _normal(C, 7), "w2": _normal(7, C)}
ROWS = "(double[B,6,4] x)"
FOLDABLE: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "into_a_linear": (f"{ROWS} => (double y) {{ a = Relu(x) {LAST} y = MatMul(b, w) }}", {}),
    "into_a_linear_with_bias": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} p = MatMul(b, w) y = Add(p, c) }}",
        {},
    ),
    "into_several_linears": (
        f"{ROWS} => (double y, double z) {{ a = Relu(x) {LAST} y = MatMul(b, w) "
        f"p = MatMul(b, w2) z = Add(p, c) }}",
        {"w2": _normal(C, 5)},
    ),
    "into_linears_that_share_a_weight": (
        f"{ROWS} => (double y, double z) {{ a = Relu(x) {LAST} y = MatMul(b, w) "
        f"z = MatMul(a, w) }}",
        {},
    ),
    "through_the_class_token": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} g = Gather<axis = 1>(b, zero) "
        f"y = Gemm<transB = 1, alpha = 0.5, beta = 3.0>(g, w3, c) }}",
        {"zero": np.array(0), "w3": _normal(5, C)},
    ),
    "through_slice_squeeze_dropout": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} s = Slice(b, zeros, ones, ones) "
        f"q = Squeeze(s, ones) i = Identity(q) y = MatMul(i, w) }}",
        {"zeros": np.array([0]), "ones": np.array([1])},
    ),
    "through_reshape": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} r = Reshape(b, rows) y = MatMul(r, w) }}",
        {"rows": np.array([-1, C])},
    ),
    "through_pooling": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} m = ReduceMean<keepdims = 0>(b, one) "
        f"y = MatMul(m, w) }}",
        {"one": np.array([1])},
    ),
    "through_gather_nd": (
        f"(double[B,6,4] x, int64[5,2] i) => (double y) {{ a = Relu(x) {LAST} g = GatherND(b, i) "
        f"y = MatMul(g, w) }}",
        {},
    ),
    "through_split": (
        f"{ROWS} => (double y, double z) {{ a = Relu(x) {LAST} "
        f"p, q = Split<axis = 1, num_outputs = 2>(b) y = MatMul(p, w) z = MatMul(q, w) }}",
        {},
    ),
    "into_an_unpadded_conv": (
        f"(double[B,4,6,6] x) => (double y) {{ a = Relu(x) b = {BN}(a, gamma, beta, mean, var) "
        f"y = Conv(b, k, c) }}",
        {"k": _normal(5, C, 2, 2)},
    ),
    "up_into_a_linear": (
        f"(double[B,6,5] x) => (double y) {{ a = MatMul(x, u) {LAST} y = Relu(b) }}",
        {},
    ),
    "up_into_a_linear_with_bias": (
        f"(double[B,6,5] x) => (double y) {{ p = MatMul(x, u) a = Add(p, c4) {LAST} y = Relu(b) }}",
        {"c4": _normal(C)},
    ),
    "up_into_a_conv": (
        f"(double[B,3,6,6] x) => (double y) {{ a = Conv<pads = [1,1,1,1]>(x, k) "
        f"b = {BN}(a, gamma, beta, mean, var) y = Relu(b) }}",
        {"k": _normal(C, 3, 3, 3)},
    ),
    "up_into_patches_class_token_and_positions": (
        f"(double[B,3,4,4] x) => (double y) {{ n1 = Shape<start = 0, end = 1>(x) "
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
        f"(double[B,6,5] x) => (double b) {{ a = MatMul(x, u) {LAST} }}",
        {},
    ),
    "a_sum_of_the_norm_and_its_input": (  # SLAB's RepBN
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} s = Mul(a, alpha) r = Add(b, s) "
        f"y = MatMul(r, w) }}",
        {"alpha": np.array(0.3)},
    ),
    "into_a_weight_on_the_left": (
        "(double[4,B] x) => (double y) { t = Relu(x) a = Transpose<perm = [1, 0]>(t) "
        f"n = {BN}(a, gamma, beta, mean, var) b = Transpose<perm = [1, 0]>(n) y = MatMul(w5, b) }}",
        {"w5": _normal(5, C)},
    ),
    "into_and_up_into_gemms_in_all_forms": (
        f"(double[B,5] x) => (double y) {{ p = Gemm<transB = 1, alpha = 2.0>(x, u2) "
        f"n = {BN}(p, gamma, beta, mean, var) r = Relu(n) q = {BN}(r, gamma, beta, mean, var) "
        f"t = Transpose<perm = [1, 0]>(q) y = Gemm<transA = 1, beta = 0.5>(t, w, one) }}",
        {"u2": _normal(C, 5), "one": np.array([0.25])},
    ),
    "into_grouped_and_depthwise_convs": (
        f"(double[B,4,6,6] x) => (double y, double z) {{ a = Relu(x) "
        f"b = {BN}(a, gamma, beta, mean, var) y = Conv<group = 2>(b, k) "
        f"z = Conv<group = 4>(b, e) }}",
        {"k": _normal(6, 2, 2, 2), "e": _normal(4, 1, 3, 3)},
    ),
    "up_into_a_padded_depthwise_conv": (
        f"(double[B,4,6,6] x) => (double y) {{ a = Conv<group = 4, pads = [1,1,1,1]>(x, e) "
        f"b = {BN}(a, gamma, beta, mean, var) y = Relu(b) }}",
        {"e": _normal(4, 1, 3, 3)},
    ),
    "a_padded_conv_takes_a_scale": (
        f"(double[B,4,6,6] x) => (double y) {{ a = Relu(x) b = {BN}(a, gamma, none, none, var) "
        f"y = Conv<pads = [1,1,1,1]>(b, k) }}",
        {"k": _normal(5, C, 2, 2), "none": np.zeros(C)},
    ),
    "up_into_an_embedding_table": (
        f"(int64[B,6] i) => (double y, double z) {{ e = Gather(table, i) a = Add(e, pos) {LAST} "
        f"y = Relu(b) z = Gather(table, i) }}",
        {"table": _normal(3, C), "pos": _normal(6, C)},
    ),
    "queries_and_keys_of_packed_heads": (
        f"(double[B,6,5] x) => (double y) {{ p = MatMul(x, packed) r = Reshape(p, heads) "
        f"t = Transpose<perm = [2, 0, 3, 4, 1]>(r) q, k, v = Split<axis = 0, num_outputs = 3>(t) "
        f"q1 = Squeeze(q, zero) q2 = Reshape(q1, flat) n = {BN}(q2, gamma, beta, mean, var) "
        f"e = Relu(n) k1 = Squeeze(k, zero) k2 = Reshape(k1, flat) "
        f"m = {BN}(k2, beta, gamma, mean, var) f = Relu(m) v1 = Relu(v) s = Add(e, f) "
        f"y = Add(v1, s2) s2 = Reshape(s, back) }}".replace(
            "y = Add(v1, s2) s2 = Reshape(s, back)", "s2 = Reshape(s, back) y = Add(v1, s2)"
        ),
        {
            "packed": _normal(5, 3 * 2 * C),
            "heads": np.array([0, 0, 3, 2, C]),
            "flat": np.array([-1, C, 6]),
            "back": np.array([1, -1, 2, C, 6]),
            "zero": np.array([0]),
        },
    ),
    "pooled_twice_and_put_together": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} g = Gather<axis = 1>(b, zero) "
        f"m = ReduceMean<keepdims = 0>(b, one) h = Concat<axis = 1>(g, m) y = MatMul(h, w8) }}",
        {"zero": np.array(0), "one": np.array([1]), "w8": _normal(2 * C, 5)},
    ),
    "through_pads_of_other_axes_without_a_shift": (
        f"{ROWS} => (double y) {{ a = Relu(x) t1 = Transpose<perm = [0, 2, 1]>(a) "
        f"t2 = {BN}(t1, gamma, none, none, var) b = Transpose<perm = [0, 2, 1]>(t2) "
        f"p = Pad(b, pads) y = MatMul(p, w) }}",
        {"none": np.zeros(C), "pads": np.array([0, 1, 0, 0, 2, 0])},
    ),
    "post_norm": (
        f"(double[B,6,5] x) => (double y) {{ a = MatMul(x, u) {LAST} {BLOCK} y = MatMul(v, w) }}",
        BLOCK_CONSTANTS,
    ),
    "post_norm_at_the_output": (
        f"(double[B,6,5] x) => (double v) {{ a = MatMul(x, u) {LAST} {BLOCK} }}",
        BLOCK_CONSTANTS,
    ),
    "the_final_norm_is_the_output": (
        f"(double[B,6,5] x) => (double v) {{ p = MatMul(x, u) b = Add(p, pos) h = MatMul(b, w1) "
        f"r = Relu(h) f = MatMul(r, w2) a = Add(b, f) "
        f"{LAST.replace('t1', 't3').replace('t2', 't4').replace('b = ', 'v = ')} }}",
        {"pos": _normal(6, C), "w1": _normal(C, 7), "w2": _normal(7, C)},
    ),
    "no_affine_and_ffn_order": (
        f"(double[B,6,4] x) => (double z) {{ a = Relu(x) {LAST} p = MatMul(b, w4) "
        f"t3 = Transpose<perm = [0, 2, 1]>(p) t4 = {BN}(t3, gamma, beta, mean, var) "
        f"t5 = Transpose<perm = [0, 2, 1]>(t4) z = Relu(t5) }}",
        {"w4": _normal(C, C)},
    ),
}


# What is no BatchNorm: the kind of its site, and the graph.
WITHOUT_A_NORM: dict[str, tuple[str, str, dict[str, np.ndarray]]] = {
    "layer_scale": (
        "scale_shift",
        "(double[B,6,5] x) => (double y) { p = MatMul(x, u) a = Mul(p, gamma) y = Add(a, a) }",
        {},
    ),
    "a_chain_of_constants": (
        "scale_shift",
        f"{ROWS} => (double y) {{ a = Relu(x) p = Sub(mean, a) q = Div(p, var) r = Mul(half, q) "
        f"s = Neg(r) t = Add(beta, s) y = MatMul(t, w) }}",
        {"half": np.array(0.5)},
    ),
    "a_square_matrix_before_linears": (
        "affine",
        f"{ROWS} => (double y, double z) {{ a = Relu(x) p = MatMul(a, m) b = Add(p, d) "
        f"y = MatMul(b, w) g = Gather<axis = 1>(b, zero) z = MatMul(g, w) }}",
        {"m": _normal(C, C), "d": _normal(C), "zero": np.array(0)},
    ),
    "a_square_matrix_before_a_conv": (
        "affine",
        "(double[B,4,6,6] x) => (double y) { a = Relu(x) b = Conv(a, m, d) y = Conv(b, k, c) }",
        {"m": _normal(C, C, 1, 1), "d": _normal(C), "k": _normal(5, C, 2, 2)},
    ),
    "a_square_matrix_up_into_patches_class_token_and_positions": (
        "affine",
        "(double[B,3,4,4] x) => (double y) { n1 = Shape<start = 0, end = 1>(x) "
        "s3 = Concat<axis = 0>(n1, tail) k = Conv<strides = [2,2]>(x, p) "
        "f = Reshape(k, flat) t = Transpose<perm = [0, 2, 1]>(f) e = Expand(cls, s3) "
        "h = Concat<axis = 1>(e, t) a = Add(h, pos) q = MatMul(a, m) b = Add(q, d) "
        "n = Relu(b) y = Add(n, b) }",
        {
            "p": _normal(C, 3, 2, 2),
            "flat": np.array([0, C, -1]),
            "cls": _normal(1, 1, C),
            "tail": np.array([1, C]),
            "pos": _normal(5, C),
            "m": _normal(C, C),
            "d": _normal(C),
        },
    ),
    "a_matrix_on_the_queries_of_packed_heads": (
        "affine",
        "(double[B,6,5] x) => (double y) { p = MatMul(x, packed) r = Reshape(p, heads) "
        "t = Transpose<perm = [2, 0, 3, 1, 4]>(r) q = Gather<axis = 0>(t, zero) "
        "k = Gather<axis = 0>(t, one) n = MatMul(q, m) e = Relu(n) f = Relu(k) y = Add(e, f) }",
        {
            "packed": _normal(5, 3 * 2 * C),
            "heads": np.array([0, 0, 3, 2, C]),
            "zero": np.array(0),
            "one": np.array(1),
            "m": _normal(C, C),
        },
    ),
    "a_square_matrix_at_the_end_of_a_stream": (
        "affine",
        "(double[B,6,5] x) => (double b) { x1 = MatMul(x, u) h = MatMul(x1, w) r = Relu(h) "
        "f = MatMul(r, u2) x2 = Add(x1, f) b = MatMul(x2, m) }",
        {"u2": _normal(5, C), "m": np.eye(C) + 0.2 * _normal(C, C)},
    ),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_folds_and_computes_the_same(name: str) -> None:
    text, constants = FOLDABLE[name]
    model = _model(text, constants)
    before = list(model.output_names)
    result = check_fold(model, _feeds(model))
    assert result.modified
    assert not result.skipped
    assert not result.notes
    assert all(node.op != "BatchNormalization" for node in result.model.graph.nodes)
    assert [v.name for v in result.model.graph.outputs] == before


@pytest.mark.parametrize("name", WITHOUT_A_NORM)
def test_folds_what_is_no_norm(name: str) -> None:
    kind, text, constants = WITHOUT_A_NORM[name]
    model = _model(text, constants)
    result = check_fold(model, _feeds(model))
    assert [site.kind for site in result.done] == [kind]
    assert not result.skipped
    assert len(result.model.graph.nodes) < len(model.graph.nodes)


def test_a_scale_goes_into_a_padded_conv_and_its_shift_stays() -> None:
    text, constants, _ = PADDED
    model = _model(text, constants)
    result = check_fold(model, _feeds(model))
    assert [node.op for node in result.model.graph.nodes] == ["Relu", "Add", "Conv"]
    (note,) = result.notes
    assert "its shift stays, as one Add" in note


def test_float16_and_bfloat16_are_rounded_once() -> None:
    for dtype, name in ((np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")):
        text, constants = FOLDABLE["into_a_linear_with_bias"]
        used = {k: v.astype(dtype) for k, v in (NORM | W | BIAS | constants).items() if k in text}
        model = model_from_onnx(onnx_graph(text.replace("double", name), used).model, "half")
        result = Fold()(model)
        assert not result.skipped
        scale = used["gamma"].astype(np.float64) / np.sqrt(
            used["var"].astype(np.float64) + 0.0078125
        )
        weight = (scale[:, None] * used["w"].astype(np.float64)).astype(dtype)
        (product,) = [n for n in result.model.graph.nodes if n.op == "MatMul"]
        got = result.model.graph.constant(product.data_input(1))
        assert got is not None
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.astype(np.float64), weight.astype(np.float64))


STREAM = (
    "(float16[B,6,5] x) => (float16 v) { b = MatMul(x, u) h = MatMul(b, w1) r = Relu(h) "
    "f = MatMul(r, w2) a = Add(b, f) "
)


@pytest.mark.parametrize(
    ("last", "constants", "reason"),
    [
        (
            "v = MatMul(a, m) }",
            {"m": np.eye(C) + 20 * np.eye(C)[::-1] * np.arange(C)},
            "rounding errors grow too much",
        ),
        ("v = Mul(a, m) }", {"m": np.array([1, 1e-3, 1e3, 1])}, "too far apart for float16"),
        ("v = Mul(a, m) }", {"m": np.array([1, 0.01, 100, 1])}, ""),
    ],
)
def test_new_variables_that_rounding_would_spoil_are_refused(
    last: str, constants: dict[str, np.ndarray], reason: str
) -> None:
    used = {"u": W["u"], **BLOCK_CONSTANTS, **constants}
    halves = {k: v.astype(np.float16) for k, v in used.items()}
    model = model_from_onnx(onnx_graph(STREAM + last, halves).model, "stream")
    result = Fold(sites="v")(model)
    assert [reason in why for _, why in result.skipped] == ([True] if reason else [])


def test_only_the_named_sites_are_folded() -> None:
    text, constants = FOLDABLE["post_norm"]
    model = _model(text, constants)
    every = [s.name for s in Fold()(model).done]
    result = Fold(sites=every[-1])(model)
    assert [s.name for s in result.done] == every[-1:]
    assert not result.skipped


def test_a_square_that_stays_is_told_of_where_it_is_named() -> None:
    text = f"{ROWS} => (double y) {{ a = Relu(x) p = MatMul(a, sq) y = Relu(p) }}"
    model = _model(text, {"sq": _normal(C, C)})
    assert not Fold()(model).skipped
    ((site, why),) = Fold(sites="p")(model).skipped
    assert (site.kind, site.name) == ("affine", "p")
    assert "Relu 'y' reads it" in why


REFUSED: dict[str, tuple[str, dict[str, np.ndarray], str]] = {
    "training_mode": (
        f"{ROWS} => (double y) {{ a = Relu(x) "
        + LAST.replace("epsilon = 0.0078125>", "epsilon = 0.0078125, training_mode = 1>").replace(
            "t2 =", "t2, rm, rv ="
        )
        + "y = MatMul(b, w) }",
        {},
        "training mode",
    ),
    "nonlinear_reader": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} y = Relu(b) }}",
        {},
        "Relu 'y' reads it",
    ),
    "one_reader_cannot": (
        f"{ROWS} => (double y, double z) {{ a = Relu(x) {LAST} y = MatMul(b, w) z = Relu(b) }}",
        {},
        "Relu 'z' reads it",
    ),
    "raw_output": (
        f"{ROWS} => (double y, double b) {{ a = Relu(x) {LAST} y = MatMul(b, w) }}",
        {},
        "'b' is an output of the model",
    ),
    "wrong_axis_though_sizes_agree": (  # N == C
        f"(double[B,4,4] x) => (double y) {{ a = Relu(x) b = {BN}(a, gamma, beta, mean, var) "
        f"y = MatMul(b, w) }}",
        {},
        "multiplies along another axis",
    ),
    "reshape_that_splits_channels": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} r = Reshape(b, s) y = MatMul(r, h) }}",
        {"s": np.array([0, 6, 2, 2]), "h": _normal(2, 2)},
        "'h' multiplies along another axis",
    ),
    "writer_read_elsewhere": (
        f"(double[B,6,5] x) => (double y, double z) {{ a = MatMul(x, u) {LAST} y = Relu(b) "
        f"z = Relu(a) }}",
        {},
        "'a' is read elsewhere too",
    ),
    "a_sum_with_what_cannot_change": (
        f"(double[B,6,4] x, double[B,6,4] g) => (double y) {{ a = Relu(x) {LAST} s = Add(b, g) "
        f"y = MatMul(s, w) }}",
        {},
        "'g' is an input of the model",
    ),
    "a_scale_of_zero_that_would_have_to_be_undone": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST.replace('gamma', 'zeros')} g = MatMul(x, sq) "
        f"h = Add(g, c4) s = Add(b, h) y = MatMul(s, w) }}",
        {"zeros": np.array([1.0, 0, 1, 1]), "sq": _normal(C, C), "c4": _normal(C)},
        "a channel's scale is 0",
    ),
    "padding_of_other_axes": (
        f"(double[B,6,4] a, double[B,8,5] z) => (double y) {{ {LAST} p = Pad(b, pads) "
        f"q = MatMul(p, w) y = Relu(p) }}",
        {"pads": np.array([0, 1, 0, 0, 1, 0])},
        "pads, where a shift would change",
    ),
    "rounded_to_integers": (
        f"{ROWS} => (double y) {{ a = Relu(x) {LAST} i = Cast<to = 7>(b) f = Cast<to = 11>(i) "
        f"y = MatMul(f, w) }}",
        {},
        "Cast 'i' rounds it to int64",
    ),
    "from_an_input_to_an_output": (
        f"{ROWS} => (double b) {{ {LAST.replace('(a)', '(x)')} }}".replace("beta, mean", "mu, mu"),
        {"gamma": np.ones(C), "mu": np.zeros(C), "var": np.full(C, 1 - 0.0078125)},
        "'x' cannot be the output 'b' as well",
    ),
    "straight_from_the_input": (
        f"(double[B,6,4] a) => (double y) {{ {LAST} y = Relu(b) }}",
        {},
        "'a' is an input of the model",
    ),
}


PADDED = (
    f"(double[B,4,6,6] x) => (double y) {{ a = Relu(x) b = {BN}(a, gamma, beta, mean, var) "
    f"y = Conv<pads = [1,1,1,1]>(b, k, c) }}",
    {"k": _normal(5, C, 2, 2)},
    "pads with zeros",
)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_the_reason_and_changes_nothing(name: str) -> None:
    text, constants, reason = REFUSED[name]
    model = _model(text, constants)
    result = Fold()(model)
    assert not result.modified
    assert result.model is model
    ((_, why),) = result.skipped
    assert reason in why


def test_a_norm_stays_told_of_when_what_stands_behind_it_folds_alone() -> None:
    """A scale of zero cannot be undone in the sum; the quotient behind the norm can."""
    text = (
        f"(double[4,4] x) => (double y) {{ a = Relu(x) b = {BN}(a, zeros, beta, mean, var) "
        f"d = Div(b, c4) t = Transpose<perm = [1, 0]>(d) g = Gemm<transA = 1>(t, sq) "
        f"s = Softmax<axis = 1>(g) m = MatMul(s, sr) e = Add(d, m) "
        f"n = {BN}(e, gamma, beta, mean, var) y = MatMul(n, w) }}"
    )
    zeros = np.array([1.0, 0, 1, 1])
    constants = {"zeros": zeros, "c4": _normal(C), "sq": _normal(C, C), "sr": _normal(C, C)}
    result = Fold()(_model(text, constants))
    assert len(result.done) == 1
    ((site, why),) = result.skipped
    assert "a channel's scale is 0" in why
    assert site.name in {s.name for s in locate(result.model.graph).sites}
