"""Norms as converters and runtimes write them: tf2onnx, ONNX Runtime, quantisers, and GroupNorms
that are spelled out over reshaped rows."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normswap as ns
from normswap import Model, load
from normswap.graph.onnx.graph import OnnxGraph, read_graph
from normswap.norms import Location, Site, locate
from normswap.passes.fold_affine import FoldAffine
from tests.graph.onnx_text import onnx_graph

C, G, H, W = 6, 3, 4, 5
RANDOM = np.random.default_rng(0)
GAMMA = RANDOM.uniform(0.5, 2, C).astype(np.float32)
BETA = RANDOM.standard_normal(C).astype(np.float32)
EPS = np.float32(1e-5)
SPELLED = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) "
    "e = Add(v, eps) s = Sqrt(e) n = Div(d, s) z = Mul(n, gamma) y = Add(z, beta) "
)
AFFINE = {"eps": EPS, "gamma": GAMMA, "beta": BETA}


def _graph(text: str, opset: int = 14, **constants: np.ndarray) -> OnnxGraph:
    return onnx_graph(text, _used(text, constants), opset)


def _with_domain(text: str, domain: str, opset: int = 17, **constants: np.ndarray) -> OnnxGraph:
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "{domain}" : 1]> test '
    proto = onnx.parser.parse_model(header + text)
    for name, array in _used(text, constants).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return read_graph(ir.serde.deserialize_model(proto))


def _used(text: str, constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The constants that are read in ``text`` and computed nowhere there."""
    named = {k: np.asarray(v) for k, v in (AFFINE | constants).items()}
    return {
        k: v
        for k, v in named.items()
        if re.search(rf"\b{k}\b", text) and not re.search(rf"\b{k} =", text)
    }


def _one(location: Location) -> Site:
    (site,) = location.sites
    return site


def _is_fused_exactly(model: Model) -> None:
    result = ns.swap(model, to="fused", lowering=ns.Lowering(target="generic"))
    assert len(result.done) == 1
    assert ns.validate(model, result.model).passed


# -- tf2onnx: Keras' LayerNormalization is a BatchNormalization over computed statistics -----------


def _keras(opset: int, ones: bool, affine: str) -> str:
    """``ones``: scale, offset and the count are stored, not computed from the sizes."""
    squeeze = "Squeeze(avg, axc)" if opset >= 13 else "Squeeze<axes = [0, 2, 3]>(avg)"
    filled = (
        "n = Gather(rsh, i1) scale = ConstantOfShape<value: tensor = float[1] {1.0}>(n) "
        "offset = ConstantOfShape<value: tensor = float[1] {0.0}>(n) "
    )
    counted = "dp = ReduceProd<axes = [0], keepdims = 0>(rd) cnt = Cast<to = 1>(dp) "
    behind = {
        "both": "gm = Mul(bk, gamma) y = Add(gm, beta)",
        "weight": "y = Mul(bk, gamma)",
        "none": "y = Identity(bk)",
    }
    batch = "2" if ones else "B"
    return (
        f"(float[{batch},5,{C}] x) => (float[{batch},5,{C}] y) {{ "
        "sh = Shape(x) r = Reshape(x, rs) rsh = Shape(r) "
        f"{'' if ones else filled}"
        "avg = ReduceMean<axes = [0, 2, 3]>(r) c = Sub(r, avg) "
        "ss = ReduceSumSquare<axes = [0, 2, 3], keepdims = 0>(c) "
        f"av1 = {squeeze} ish = Shape(r) rd = Gather(ish, axc) "
        f"{'' if ones else counted}pv = Div(ss, cnt) "
        "bn = BatchNormalization<epsilon = 1e-3>(r, scale, offset, av1, pv) "
        f"bk = Reshape(bn, sh) {behind[affine]} }}"
    )


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize(("opset", "ones"), [(9, False), (11, True), (13, False), (15, True)])
def test_a_batch_normalization_of_computed_statistics_is_a_layer_norm(
    opset: int, ones: bool, affine: str
) -> None:
    graph = _graph(
        _keras(opset, ones, affine),
        opset,
        rs=np.array([1, -1, C, 1]),
        i1=np.array([1]),
        axc=np.array([0, 2, 3]),
        cnt=np.float32(C),
        scale=np.ones(10, np.float32),
        offset=np.zeros(10, np.float32),
    )
    site = _one(locate(graph))
    assert (site.kind, site.axes, site.epsilon, site.input) == ("layer_norm", (2,), 1e-3, "x")
    assert (site.weight is None, site.bias is None) == (affine == "none", affine != "both")


def test_a_keras_norm_becomes_its_operator_exactly() -> None:
    graph = _graph(
        _keras(13, False, "both"), 13, rs=np.array([1, -1, C, 1]), i1=np.array([1]),
        axc=np.array([0, 2, 3]),
    )  # fmt: skip
    model = load(graph.model)
    _is_fused_exactly(model)


def test_a_batch_normalization_of_statistics_that_are_fed_is_left_alone() -> None:
    body = "y = BatchNormalization(x, gamma, beta, mean, variance)"
    inputs = f"float[2,{C},4] x, float[{C}] mean, float[{C}] variance"
    location = locate(_graph(f"({inputs}) => (float[2,{C},4] y) {{ {body} }}"))
    assert not location.sites
    assert location.rejected[0].reason == "its parameters are computed by the graph"


# -- operators of ONNX Runtime ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "com.microsoft."])
def test_a_simplified_layer_norm_is_an_rms_norm(prefix: str) -> None:
    body = f"y = {prefix}SimplifiedLayerNormalization<axis = -1, epsilon = 1e-6>(x, gamma)"
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {body} }}"
    site = _one(locate(_with_domain(text, "com.microsoft")))
    assert (site.kind, site.axes, site.epsilon, site.fixed) == ("rms_norm", (2,), 1e-6, "")
    np.testing.assert_array_equal(site.weight, GAMMA)


SKIP = [
    ("SkipLayerNormalization", "(a, x, gamma, beta)", "layer_norm", True),
    ("SkipLayerNormalization", "(a, x, gamma)", "layer_norm", False),
    ("SkipLayerNormalization", "(a, x, gamma, beta, more)", "layer_norm", True),
    ("SkipSimplifiedLayerNormalization", "(a, x, gamma)", "rms_norm", False),
    ("SkipSimplifiedLayerNormalization", "(a, x, gamma, more)", "rms_norm", False),
]


@pytest.mark.parametrize("total", ["", ", , , t"])
@pytest.mark.parametrize(("op", "reads", "kind", "biased"), SKIP)
def test_a_norm_of_a_sum_in_one_operator_is_located_and_left(
    op: str, reads: str, kind: str, biased: bool, total: str
) -> None:
    behind = "o = Add(y, t)" if total else "o = Identity(y)"
    body = f"y{total} = com.microsoft.{op}<epsilon = 1e-5>{reads} {behind}"
    text = f"(float[2,4,{C}] a, float[2,4,{C}] x) => (float[2,4,{C}] o) {{ {body} }}"
    graph = _with_domain(text, "com.microsoft", more=BETA)
    site = _one(locate(graph))
    assert (site.kind, site.axes, site.output) == (kind, (2,), "y")
    assert site.input == ("t" if total else "a")
    assert (site.bias is not None) == biased
    assert site.fixed == f"{op} computes the sum that it normalises as well"
    model = load(graph.model)
    for to in ("fused", "rmsnorm"):
        result = ns.swap(model, to=to)
        assert not result.modified
        assert result.skipped == [(model.sites[0], site.fixed)]
    assert [s for s, _ in FoldAffine()(model).skipped] == list(model.sites)


def test_a_norm_of_looked_up_embeddings_is_an_embedding_norm() -> None:
    body = "y, mask = com.microsoft.EmbedLayerNormalization(ids, , words, places, , gamma, beta)"
    text = f"(int32[2,4] ids) => (float[2,4,{C}] y) {{ {body} }}"
    tables = {"words": np.ones((9, C), np.float32), "places": np.ones((8, C), np.float32)}
    site = _one(locate(_with_domain(text, "com.microsoft", **tables)))
    assert (site.kind, site.axes, site.epsilon, site.tower) == ("layer_norm", (2,), 1e-12, "text")
    assert "embeddings" in site.fixed


@pytest.mark.parametrize("post", [False, True])
def test_norms_of_sums_have_their_roles(post: bool) -> None:
    """Two MLPs as ONNX Runtime writes them, with norms before them or behind."""
    op = "com.microsoft.SkipLayerNormalization"
    mlp = "{0}1 = MatMul({1}, w) {0}2 = Relu({0}1) {0}3 = MatMul({0}2, w) "
    body = (
        "x = MatMul(ids, w) "
        + ("" if post else "n = LayerNormalization(x, gamma) ")
        + mlp.format("p", "x" if post else "n")
        + (f"a = {op}(x, p3, gamma) " if post else f"m, , , t = {op}(x, p3, gamma) ")
        + mlp.format("q", "a" if post else "m")
        + (f"b = {op}(a, q3, gamma) " if post else f"f = {op}(t, q3, gamma) ")
        + f"y = MatMul({'b' if post else 'f'}, w)"
    )
    text = f"(float[2,4,{C}] ids) => (float[2,4,{C}] y) {{ {body} }}"
    location = locate(_with_domain(text, "com.microsoft", w=np.eye(C, dtype=np.float32)))
    roles = {site.output: site.role for site in location.sites}
    if post:
        assert roles == {"a": "post_mlp", "b": "post_mlp"}
    else:
        assert roles == {"n": "pre_mlp", "m": "pre_mlp", "f": "final"}


@pytest.mark.parametrize("op", ["GroupNorm", "SkipGroupNorm"])
def test_group_norms_of_onnx_runtime(op: str) -> None:
    reads = "x, gamma, beta" if op == "GroupNorm" else "x, gamma, beta, x"
    body = f"y = com.microsoft.{op}<groups = {G}, epsilon = 1e-6, activation = 0>({reads})"
    text = f"(float[2,{H},{W},{C}] x) => (float[2,{H},{W},{C}] y) {{ {body} }}"
    site = _one(locate(_with_domain(text, "com.microsoft")))
    assert (site.kind, site.groups, site.axes) == ("group_norm", G, (1, 2, 3))
    assert site.fixed


# -- MeanVarianceNormalization ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "kind"),
    [("[3]", "layer_norm"), ("[-1]", "layer_norm"), ("[1]", "layer_norm"),
     ("[1, 2, 3]", "layer_norm"), ("[2, 3]", "instance_norm")],
)  # fmt: skip
def test_a_mean_variance_normalization_is_called_by_its_axes(axes: str, kind: str) -> None:
    body = f"y = MeanVarianceNormalization<axes = {axes}>(x)"
    site = _one(locate(_graph(f"(float[2,3,4,5] x) => (float[2,3,4,5] y) {{ {body} }}")))
    assert (site.kind, site.weight, site.bias, site.epsilon) == (kind, None, None, 0)
    assert "epsilon" in site.fixed


@pytest.mark.parametrize("axes", ["", "<axes = [0, 1]>"])
def test_statistics_of_the_batch_are_no_norm_of_rows(axes: str) -> None:
    body = f"y = MeanVarianceNormalization{axes}(x)"
    location = locate(_graph(f"(float[2,3,4,5] x) => (float[2,3,4,5] y) {{ {body} }}"))
    assert not location.sites
    assert location.rejected[0].reason == "it normalises by the batch's own statistics"


@pytest.mark.parametrize("axes", ["[4]", "[-9]", "[7, 1]"])
def test_axes_beyond_the_input_are_a_reason(axes: str) -> None:
    body = f"y = MeanVarianceNormalization<axes = {axes}>(x)"
    location = locate(_graph(f"(float[2,3,4,5] x) => (float[2,3,4,5] y) {{ {body} }}"))
    assert not location.sites
    assert location.rejected[0].reason == "its axes are not those of its input"


# -- sizes that the graph computes -----------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["3,12", "B,12", "3,4,12", "2,4,12", "3,3,3"])
def test_axes_that_the_graph_counts_are_constants(sizes: str) -> None:
    body = (
        "axis = Constant<value_int = -1>() one = Constant<value_int = 1>() "
        "shape = Shape(x) rank = Size(shape) first = Add(rank, axis) "
        "axes = Range(first, rank, one) q = Mul(x, x) v = ReduceMean(q, axes) e = Add(v, eps) "
        "s = Sqrt(e) y = Div(x, s)"
    )
    site = _one(locate(_graph(f"(float[{sizes}] x) => (float[{sizes}] y) {{ {body} }}", 18)))
    assert (site.kind, site.axes) == ("rms_norm", (sizes.count(","),))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_mean_by_its_own_count_is_a_mean_for_any_batch(batch: int) -> None:
    spelled = SPELLED.replace(
        "m = ReduceMean<axes = [-1]>(x)", "t = ReduceSum(x, last) m = Div(t, count)"
    )
    body = "shape = Shape(x) size = Gather(shape, two) count = Cast<to = 1>(size) " + spelled
    text = f"(float[{batch},5,{C}] x) => (float[{batch},5,{C}] y) {{ {body} }}"
    site = _one(locate(_graph(text, last=np.array([-1]), two=np.int64(2))))
    assert (site.kind, site.axes, site.input, site.output) == ("layer_norm", (2,), "x", "y")


# -- what stands beside a norm ---------------------------------------------------------------------


@pytest.mark.parametrize("captured", ["y", "x", "d"])
def test_a_branch_beside_a_norm_is_no_part_of_it(captured: str) -> None:
    """Its condition comes from the norm's input, and what it runs reads the norm."""
    branches = (
        f"then_branch = yes () => (float[B,{C}] t) {{ t = Neg({captured}) }}, "
        f"else_branch = no () => (float[B,{C}] f) {{ f = Identity({captured}) }}"
    )
    body = (
        SPELLED
        + "k = ReduceMean<keepdims = 0>(x) c = Greater(k, zero) "
        + f"o = If(c) <{branches}>"
    )
    text = f"(float[B,{C}] x) => (float[B,{C}] y, float[B,{C}] o) {{ {body} }}"
    site = _one(locate(_graph(text, zero=np.float32(0))))
    assert (site.kind, site.input, site.output) == ("layer_norm", "x", "y")


@pytest.mark.parametrize("reads", ["x", "y", "d", "n"])
def test_an_operator_that_nothing_can_evaluate_ends_no_search(reads: str) -> None:
    body = SPELLED + f"o = com.example.Thing({reads})"
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y, float[B,4,{C}] o) {{ {body} }}"
    site = _one(locate(_with_domain(text, "com.example", 14)))
    assert (site.kind, site.input, site.output) == ("layer_norm", "x", "y")


def test_a_weight_that_cannot_be_computed_is_no_part_of_the_norm() -> None:
    body = "gamma = com.example.Thing(stored) " + SPELLED
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {body} }}"
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 14, "com.example" : 1]> test {text}'
    )
    for name, array in {"stored": GAMMA, "beta": BETA, "eps": EPS}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    graph = read_graph(ir.serde.deserialize_model(proto))
    for value in graph.values():  # as runtimes' files record it
        if value.name == "gamma":
            value.shape, value.dtype = (C,), np.dtype(np.float32)
    site = _one(locate(graph))
    assert (site.kind, site.output, site.weight) == ("layer_norm", "n", None)


@pytest.mark.parametrize("op", ["LayerNormalization", "BatchNormalization"])
def test_an_operator_whose_weight_cannot_be_computed_is_a_reason(op: str) -> None:
    more = "" if op == "LayerNormalization" else ", beta, beta, one"
    body = f"w = com.example.Thing(gamma) u = {op}(x, w{more}) {SPELLED.replace('(x', '(u')}"
    text = f"(float[2,{C},{C}] x) => (float[2,{C},{C}] y) {{ {body} }}"
    location = locate(_with_domain(text, "com.example", 17, one=np.ones(C, np.float32)))
    assert [site.output for site in location.sites] == ["y"]
    assert [r.reason for r in location.rejected] == [
        "what its parameter 'w' holds cannot be computed"
    ]


# -- GroupNorms ------------------------------------------------------------------------------------

SIZES = f"2,{C},{H},{W}"
ROWS = {
    "spelled": SPELLED.replace("(x", "(r").split(" z =")[0] + " ",
    "instance": "n = InstanceNormalization<epsilon = 1e-5>(r, ones, zeros) ",
    "operator": "n = LayerNormalization<axis = -1, epsilon = 1e-5>(r, plain) ",
}
INTO_ROWS = {
    "groups": np.array([0, G, -1]),
    "flat": np.array([2 * G, -1]),
    "split": np.array([2, G, C // G, H * W]),
}
BACK = {"plain": "y = Identity(k)", "affine": "z = Mul(k, gamma) a = Add(z, beta) y = Relu(a)"}


@pytest.mark.parametrize("affine", BACK)
@pytest.mark.parametrize(
    ("rows", "into"),
    [("spelled", "groups"), ("spelled", "flat"), ("spelled", "split"), ("instance", "groups"),
     ("operator", "groups")],
)  # fmt: skip
def test_a_group_norm_over_reshaped_rows(rows: str, into: str, affine: str) -> None:
    inner = ROWS[rows].replace("axes = [-1]", "axes = [2, 3]") if into == "split" else ROWS[rows]
    body = f"r = Reshape(x, into) {inner} shape = Shape(x) k = Reshape(n, shape) {BACK[affine]}"
    graph = _graph(
        f"(float[{SIZES}] x) => (float[{SIZES}] y) {{ {body} }}",
        17,
        into=INTO_ROWS[into],
        ones=np.ones(G, np.float32),
        zeros=np.zeros(G, np.float32),
        plain=np.ones(C // G * H * W, np.float32),
        gamma=GAMMA.reshape(C, 1, 1),
        beta=BETA.reshape(C, 1, 1),
    )
    site = _one(locate(graph))
    assert (site.kind, site.groups, site.input) == ("group_norm", G, "x")
    assert site.output == ("a" if affine == "affine" else "k")
    if affine == "affine":
        np.testing.assert_array_equal(site.weight, GAMMA)
        np.testing.assert_array_equal(site.bias, BETA)


@pytest.mark.parametrize("affine", [False, True])
def test_a_group_norm_with_its_channels_last(affine: bool) -> None:
    """As Keras has it: over height, width and the channels of a group."""
    inner = ROWS["spelled"].replace("axes = [-1]", "axes = [1, 2, 4]")
    behind = "z = Mul(k, gamma) y = Add(z, beta)" if affine else "y = Identity(k)"
    body = f"r = Reshape(x, into) {inner} shape = Shape(x) k = Reshape(n, shape) {behind}"
    text = f"(float[B,{H},{W},{C}] x) => (float[B,{H},{W},{C}] y) {{ {body} }}"
    site = _one(locate(_graph(text, into=np.array([-1, H, W, G, C // G]))))
    assert (site.kind, site.groups, site.axes, site.input) == ("group_norm", G, (1, 2, 3), "x")
    if affine:
        np.testing.assert_array_equal(site.weight, GAMMA)


@pytest.mark.parametrize("rows", ["spelled", "operator"])
@pytest.mark.parametrize(
    "behind", ["y = Reshape(n, back)", "k = Mul(n, gamma) y = Reshape(k, back)"]
)
def test_norms_of_heads_are_layer_norms_of_heads(rows: str, behind: str) -> None:
    body = f"r = Reshape(x, into) {ROWS[rows]} {behind}"
    graph = _graph(
        f"(float[2,5,{2 * C}] x) => (float[2,5,{2 * C}] y) {{ {body} }}",
        17,
        into=np.array([2, 5, 2, C]),
        back=np.array([2, 5, 2 * C]),
        plain=np.ones(C, np.float32),
    )
    site = _one(locate(graph))
    assert (site.kind, site.axes, site.input) == ("layer_norm", (3,), "r")


class _Decomposed(nn.Module):
    """A GroupNorm as torch decomposes it."""

    def __init__(self, groups: int, affine: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, C, affine=affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], self.norm.num_groups, -1)
        variance, mean = torch.var_mean(rows, dim=[2], correction=0, keepdim=True)
        y = ((rows - mean) * torch.rsqrt(variance + self.norm.eps)).view(x.shape)
        if self.norm.affine:
            y = y * self.norm.weight[None, :, None, None] + self.norm.bias[None, :, None, None]
        return torch.relu(y)


@pytest.mark.parametrize("affine", [False, True])
def test_a_group_norm_that_torch_decomposed(affine: bool) -> None:
    module = _Decomposed(G, affine).eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    site = _one(load(module, example_inputs=torch.randn(2, C, H, W)).location)
    assert (site.kind, site.groups, site.input) == ("group_norm", G, "x")
    assert (site.weight is None, site.bias is None) == (not affine, not affine)
