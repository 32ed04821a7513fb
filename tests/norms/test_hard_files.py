"""Files that other tools refuse or read wrongly: they load, and what is in them is located."""

from __future__ import annotations

import io
import tracemalloc
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from normswap import Model, load, swap, validate
from normswap.graph.onnx.graph import OnnxGraph, read_graph
from normswap.norms import Location, evaluation, locate, proof
from tests.fuzz import bounded
from tests.graph.onnx_text import onnx_graph

C = 6
GAMMA = np.linspace(0.5, 2, C).astype(np.float32)
SPELLED = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) "
    "e = Add(v, eps) s = Sqrt(e) n = Div(d, s) y = Mul(n, gamma) "
)
CONSTANTS = {"eps": np.float32(1e-5), "gamma": GAMMA}


def _located(text: str, opset: int = 14, **constants: np.ndarray) -> Location:
    used = {k: np.asarray(v) for k, v in (CONSTANTS | constants).items() if k in text}
    return locate(onnx_graph(text, used, opset))


def _one_layer_norm(location: Location) -> None:
    (site,) = location.sites
    assert (site.kind, site.epsilon, site.normalized_shape) == ("layer_norm", 1e-5, (C,))
    np.testing.assert_array_equal(site.weight, GAMMA)


def test_nodes_in_any_order() -> None:
    nodes = [part + ")" for part in SPELLED.split(") ") if part]
    for order in (list(reversed(nodes)), sorted(nodes)):
        text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {' '.join(order)} }}"
        _one_layer_norm(_located(text))


def test_layer_normalization_below_its_opset() -> None:
    """Some exporters write the operator of opset 17 into files of 13 or 14."""
    body = "y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, gamma, beta)"
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {body} }}"
    _one_layer_norm(_located(text, opset=13, beta=np.zeros(C, np.float32)))


def test_the_bodies_of_functions() -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 14, "own" : 1]> test
    (float[B,4,{C}] x) => (float[B,4,{C}] y) {{ y = own.Norm(x, gamma, eps) }}
    <domain: "own", opset_import: ["" : 14]>
    Norm (x, gamma, eps) => (y) {{ {SPELLED} }}"""
    proto = onnx.parser.parse_model(text)
    for name, array in CONSTANTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    _one_layer_norm(locate(read_graph(ir.serde.deserialize_model(proto))))


class _Patches(nn.Module):
    """A patch embedding, positions for 16 patches and one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, C, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 16, C))
        self.norm = nn.LayerNorm(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2) + self.positions
        return self.norm(tokens)


def _with_symbols(rename: dict[int, str | None]) -> Model:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Patches().eval(), torch.randn(2, 1, 16, 16), buffer, dynamo=False, opset_version=14,
            input_names=["x"], dynamic_axes={"x": {a: f"x_{a}" for a in range(4)}},
        )  # fmt: skip
    proto = onnx.load_from_string(buffer.getvalue())
    for axis, symbol in rename.items():
        dim = proto.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.Clear() if symbol is None else setattr(dim, "dim_param", symbol)
    return load(ir.serde.deserialize_model(proto))


@pytest.mark.parametrize("missing", [False, True])
def test_symbolic_and_missing_sizes_are_found(missing: bool) -> None:
    """Height and width have to fit the position embedding; the channels the convolution."""
    model = _with_symbols(dict.fromkeys(range(4)) if missing else {2: "side", 3: "side"})
    assert model.examples["x"].shape == (2, 1, 16, 16)
    (site,) = locate(model.graph).sites
    assert model.graph.value(site.input).shape == (2, 16, C)


@pytest.mark.parametrize("enabled", [False, True])
def test_regions_under_autocast_and_no_grad(enabled: bool) -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(C), nn.Linear(C, C)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = self.linear(self.norm(x))
            with torch.no_grad():
                return x + 2 * self.norm(y.float())

    module, x = Regions().eval(), torch.randn(2, 4, C)
    model = load(module, example_inputs=x)
    assert [s.kind for s in locate(model.graph).sites] == ["layer_norm"] * 2
    (y,) = model.run({model.inputs[0].name: x.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_array_equal(y, module(x).numpy())


# -- what is left alone, and why ------------------------------------------------------------------


def _if_graph() -> OnnxGraph:
    """if flag: y = LayerNormalization(x) else: y = x."""
    norm = helper.make_node("LayerNormalization", ["x", "gamma"], ["inner"], axis=-1)
    bodies = {
        "then_branch": ([norm], "inner"),
        "else_branch": ([helper.make_node("Identity", ["x"], ["same"])], "same"),
    }
    branches = {
        name: helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(output)])
        for name, (nodes, output) in bodies.items()
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], **branches)],
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, C]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, C])],
        [onnx.numpy_helper.from_array(GAMMA, "gamma")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return read_graph(ir.serde.deserialize_model(proto))


def test_a_norm_in_a_branch_is_named_and_left_alone() -> None:
    location = locate(_if_graph())
    assert not location.sites
    (rejection,) = location.rejected
    assert rejection.reason == (
        "LayerNormalization in the body of If, which may run or not, is left as it is"
    )


def test_a_branch_inside_a_spelling_is_the_reason() -> None:
    then_branch = helper.make_graph(
        [helper.make_node("Identity", ["m"], ["a"])], "then", [],
        [helper.make_empty_tensor_value_info("a")],
    )  # fmt: skip
    else_branch = helper.make_graph(
        [helper.make_node("Neg", ["m"], ["b"])], "else", [],
        [helper.make_empty_tensor_value_info("b")],
    )  # fmt: skip
    branch = helper.make_node(
        "If", ["flag"], ["k"], then_branch=then_branch, else_branch=else_branch
    )
    text = (
        '<ir_version: 9, opset_import: ["" : 14]> test '
        f"(float[2,4,{C}] x, bool flag) => (float[2,4,{C}] y) {{ {SPELLED} }}"
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.node[1].input[1] = "k"  # Sub(x, m) becomes Sub(x, k)
    proto.graph.node.insert(1, branch)
    for name, array in CONSTANTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    location = locate(read_graph(ir.serde.deserialize_model(proto)))
    assert not location.sites
    (rejection,) = location.rejected
    assert "data-dependent control flow (If" in rejection.reason


def test_an_operator_of_one_runtime_is_named() -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 17, "com.example" : 1]> test
    (float[2,4,{C}] x) => (float[2,4,{C}] y) {{
      y = com.example.FancyNorm<epsilon = 1e-5>(x, gamma)
    }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(GAMMA, "gamma"))
    location = locate(read_graph(ir.serde.deserialize_model(proto)))
    assert not location.sites
    assert "com.example.FancyNorm" in location.rejected[0].reason


def test_a_computed_scale_is_no_constant_of_a_site() -> None:
    body = "y = LayerNormalization<axis = -1>(x, z)"
    location = _located(f"(float[2,4,{C}] x, float[{C}] z) => (float[2,4,{C}] y) {{ {body} }}", 17)
    assert not location.sites
    assert location.rejected[0].reason == "its parameters are computed by the graph"


def test_overflow_in_half_is_the_reason() -> None:
    """A sum of squares that is scaled up before the root: fine in float32, infinite in half."""
    body = (
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) w = Mul(d, large) q = Mul(w, w) "
        "v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) s = Sqrt(e) y = Div(w, s) "
    )
    for kind, dtype in (("float16", np.float16), ("float", np.float32)):
        text = f"({kind}[2,4,{C}] x) => ({kind}[2,4,{C}] y) {{ {body} }}"
        location = _located(text, large=np.array(500, dtype), eps=np.array(1e-3, dtype))
        if dtype is np.float32:
            assert [s.kind for s in location.sites] == ["layer_norm"]
        else:
            assert not location.sites
            assert "overflows in half precision" in location.rejected[0].reason


def test_a_proof_beyond_the_memory_bound_is_refused() -> None:
    rows = 6_000_000  # times 4 is more than the bound; the Reshape takes no fewer
    body = (
        "r = Reshape(x, shape) m = ReduceMean<axes = [-1]>(r) d = Sub(r, m) q = Mul(d, d) "
        "v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) s = Sqrt(e) k = Reshape(s, column) "
        "c = Reshape(d, shape) y = Div(c, k) "
    )
    text = f"(float[{rows * 4}] x) => (float[{rows},4] y) {{ {body} }}"
    shapes = {"shape": np.array([rows, 4]), "column": np.array([rows, 1])}
    location = _located(text, **shapes)
    assert not location.sites
    assert "beyond the bound" in location.rejected[0].reason


def test_a_scale_that_depends_on_a_dynamic_size_is_no_weight() -> None:
    """TorchScript writes the scale of attention as a root of a size."""
    body = (
        SPELLED.replace("y = Mul(n, gamma)", "g = Mul(n, gamma)")
        + "sizes = Shape(z) tokens = Gather<axis = 0>(sizes, one) "
        "count = Cast<to = 1>(tokens) root = Sqrt(count) y = Mul(g, root) "
    )
    text = f"(float[2,4,{C}] x, float[2,N] z) => (float[2,4,{C}] y) {{ {body} }}"
    location = _located(text, one=np.int64(1))
    (site,) = location.sites
    assert site.output == "g"


def test_a_mean_by_its_own_count_is_a_mean() -> None:
    body = (
        SPELLED.replace(
            "m = ReduceMean<axes = [-1]>(x)", "t = ReduceSum(x, last) m = Div(t, count)"
        )
        + "sizes = Shape(x) width = Gather<axis = 0>(sizes, two) count = Cast<to = 1>(width) "
    )
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {body} }}"
    _one_layer_norm(_located(text, two=np.int64(2), last=np.array([-1])))


# -- rewriting what is spelled with readers in between --------------------------------------------


@pytest.mark.parametrize("kept", ["m", "d", "n", "s"])
def test_an_intermediate_that_is_an_output_keeps_its_value(kept: str) -> None:
    shape = f"B,4,{C}" if kept in "dn" else "B,4,1"
    header = f"(float[B,4,{C}] x) => (float[B,4,{C}] y, float[{shape}] {kept})"
    graph = onnx_graph(
        f"{header} {{ {SPELLED} }}", {k: np.asarray(v) for k, v in CONSTANTS.items()}, 14
    )
    model = load(graph.model)
    result = swap(model, to="fused")
    assert [s.output for s in result.done] == ["y"]
    assert validate(model, result.model).passed
    assert not [s for s in locate(result.model.graph).sites if s.spelling == "decomposed"] or kept


# Norms at fixed sizes that no smaller probe fits.
_LARGE = {
    "group": "r = Reshape(x, rows) i = InstanceNormalization(r, g2, b2) b = Reshape(i, back) "
    "k = Mul(b, gamma) y = Add(k, beta)",
    "spelled": "r = Reshape(x, rows) m = ReduceMean<axes = [-1]>(r) d = Sub(r, m) q = Mul(d, d) "
    "v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) s = Sqrt(e) n = Div(d, s) "
    "b = Reshape(n, back) k = Mul(b, gamma) y = Add(k, beta)",
    "layer": "r = Reshape(x, one) m = ReduceMean<axes = [-1]>(r) d = Sub(r, m) q = Mul(d, d) "
    "v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) s = Sqrt(e) n = Div(d, s) "
    "y = Reshape(n, back)",
}


@pytest.mark.parametrize("spelling", _LARGE)
def test_few_copies_of_a_large_value_are_held(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of the largest that is evaluated as fit into 2 GB."""
    scale = 64  # of the bounds
    monkeypatch.setattr(evaluation, "WHOLE", evaluation.WHOLE // scale)
    monkeypatch.setattr(proof, "WHOLE", evaluation.WHOLE)
    monkeypatch.setattr(evaluation, "_ELEMENTS", evaluation._ELEMENTS // scale)
    side = 90 if spelling != "layer" else 51  # as large as the bound allows
    constants: dict[str, np.ndarray] = {
        "rows": np.array([1, 8, -1]), "back": np.array([1, 32, side, side]),
        "one": np.array([1, 1, -1]), "g2": np.ones(8, "f"),
        "b2": np.zeros(8, "f"), "gamma": np.linspace(0.5, 2, 32, dtype="f").reshape(-1, 1, 1),
        "beta": np.linspace(-1, 1, 32, dtype="f").reshape(-1, 1, 1),
    }  # fmt: skip
    shape = f"float[1,32,{side},{side}]"
    tracemalloc.start()
    location = _located(f"({shape} x) => ({shape} y) {{ {_LARGE[spelling]} }}", **constants)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [site.kind for site in location.sites] == [
        "layer_norm" if spelling == "layer" else "group_norm"
    ]
    assert peak < 0.9 * bounded.MEMORY / scale
