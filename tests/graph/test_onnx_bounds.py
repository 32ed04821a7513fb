"""Small ONNX files that ask for a lot: they are read at once, or refused in one line."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from normswap import NormswapError, fold, fold_affine, load, locate, swap, validate
from normswap.graph.onnx import nodes, single_nodes

NORM = "y = LayerNormalization<axis = -1>(z, gamma) "
GAMMA = {"gamma": np.ones(8, np.float32)}


@pytest.fixture(autouse=True)
def _frugal() -> Iterator[None]:
    """Little CPU time and little memory beyond what the process has."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000


def _model(text: str, opset: int = 17, **constants: np.ndarray) -> ir.Model:
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1, "own" : 1]> test '
    proto = onnx.parser.parse_model(header + text)
    for name, array in {**GAMMA, **constants}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return ir.serde.deserialize_model(proto)


def _loop(trips: int) -> ir.Model:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["carried", "x"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    shape = [2, 3, 8]
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["trips", "", "x"], ["w"], body=body),
            helper.make_node("Add", ["w", "x"], ["s"]),
            helper.make_node("LayerNormalization", ["x", "gamma"], ["z"]),
            helper.make_node("Add", ["z", "s"], ["y"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(trips), "trips"),
            numpy_helper.from_array(GAMMA["gamma"], "gamma"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=9))


@pytest.mark.parametrize("trips", [3, 1 << 60])
def test_a_loop_is_not_run(trips: int) -> None:
    assert [site.kind for site in locate(load(_loop(trips)))] == ["layer_norm"]


def test_a_loop_over_constants_is_no_constant() -> None:
    model = _loop(1 << 60)
    model.graph.inputs[0].name = "unused"
    loop = next(iter(model.graph))
    start = ir.Value(name="start", const_value=ir.tensor(np.zeros((2, 3, 8), np.float32)))
    model.graph.initializers.add(start)
    loop.replace_input_with(2, start)
    for inner in loop.attributes["body"].as_graph():
        for index, value in enumerate(inner.inputs):
            if value is model.graph.inputs[0]:
                inner.replace_input_with(index, start)
    graph = load(model).graph
    assert not graph.value("w").is_constant


# What becomes of a value that a small file makes large, in the ways that there are.
HUGE = {
    "filled": "h = ConstantOfShape(sizes)",
    "expanded": "h = Expand(one, sizes)",
    "repeated": "h = Tile(one, sizes)",
    "a range": "h = Range(nought, end, step)",
    "positions": "f = ConstantOfShape<value = float[1] {1}>(sizes) h = NonZero(f)",
    "outer products": 'h = Einsum<equation = "i,j,k,l,m,n->ijklmn">(v, v, v, v, v, v)',
    "padded": "h = Pad(row, sides)",
    "pooled": "p = Unsqueeze(row, where) q = Unsqueeze(p, where) "
    "h = MaxPool<kernel_shape = [1000000000], pads = [999999999, 0]>(q)",
}
SIZES = {
    "one": np.ones((1, 1), np.float32),
    "row": np.ones(4, np.float32),
    "v": np.ones(60, np.float32),
    "sizes": np.array([1 << 17, 1 << 17]),
    "nought": np.int64(0),
    "end": np.int64(1 << 40),
    "step": np.int64(1),
    "sides": np.array([1 << 40, 0]),
    "where": np.array([0]),
}


@pytest.mark.parametrize("how", HUGE)
def test_what_is_large_is_not_computed(how: str) -> None:
    used = {name: array for name, array in SIZES.items() if name in HUGE[how]}
    tail = (
        "c = Cast<to = 1>(h) m = ReduceMax<keepdims = 0>(c) g = com.microsoft.QuickGelu(x) "
        f"z = Add(g, m) {NORM}"
    )
    text = f"(float[2,3,8] x) => (float[2,3,8] y) {{ {HUGE[how]} {tail} }}"
    model = load(_model(text, **used))
    assert [site.kind for site in locate(model)] == ["layer_norm"]


@pytest.mark.parametrize(
    "weight",
    [
        "w = ConstantOfShape(sizes)",
        "w = Expand(one, sizes)",
        "w = Tile(one, sizes)",
        "f = ConstantOfShape(sizes) w = Transpose(f)",
        "f = ConstantOfShape(sizes) s = ReduceMax<keepdims = 0>(f) w = Add(s, square)",
        'f = Einsum<equation = "i,j,k,l,m,n->ijklmn">(v, v, v, v, v, v) '
        "s = ReduceMax<keepdims = 0>(f) w = Add(s, square)",
    ],
)
def test_a_weight_that_is_computed_and_large_is_no_constant(weight: str) -> None:
    body = f"{weight} z = Relu(x) l = LayerNormalization(z, gamma) y = MatMul(l, w)"
    used = {**SIZES, "sizes": np.array([8, 1 << 34]), "square": np.ones((8, 8), np.float32)}
    constants = {name: array for name, array in used.items() if name in body}
    model = load(_model(f"(float[2,3,8] x) => (float[2,3,N] y) {{ {body} }}", **constants))
    assert not model.graph.value("w").is_constant
    assert len(locate(model)) == 1
    fold(fold_affine(swap(model, to="rmsnorm").model).model)


def test_a_region_that_makes_much_of_its_entry_is_not_evaluated() -> None:
    body = (
        "e = Expand(x, sizes) m = ReduceMean<axes = [-1]>(e) d = Sub(e, m) q = Mul(d, d) "
        "v = ReduceMean<axes = [-1]>(q) r = Sqrt(v) n = Div(d, r) y = ReduceMax<axes = [0]>(n)"
    )
    sizes = np.array([1 << 20, 3, 1 << 10])
    model = load(_model(f"(float[3,1] x) => (float[1,3,K] y) {{ {body} }}", sizes=sizes))
    assert all(site.input != "x" for site in locate(model))


def test_doubled_again_and_again_behind_an_operator_that_inference_does_not_know() -> None:
    chain = " ".join(f"c{i + 1} = Concat<axis = 0>(c{i}, c{i})" for i in range(45))
    text = (
        "(float[B,8] x) => (float[B,8] y) { c0 = com.microsoft.QuickGelu(x) "
        f"{chain} m = ReduceMax<keepdims = 0>(c45) z = Add(c0, m) {NORM} }}"
    )
    model = load(_model(text))
    assert model.graph.value("c3").shape == (16, 8)
    assert len(locate(model)) == 1


def test_an_unknown_operator_that_makes_much_stays_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (
        "(float[2,3,8] x, float[2,3,4] w) => (float[2,3,8] y, float[A,B,D] g) { "
        f"g = com.microsoft.Pad(w, sides) z = Add(x, x) {NORM} }}"
    )
    model = load(_model(text, sides=np.array([0, 0, 0, 0, 0, 1 << 33])))
    assert model.graph.value("g").shape is None
    assert len(locate(model)) == 1
    monkeypatch.setattr(single_nodes, "_READ", 10)
    small = f"(float[2,3,8] x) => (float[2,3,8] y) {{ z = com.microsoft.QuickGelu(x) {NORM} }}"
    assert load(_model(small)).graph.value("z").shape is None


def test_an_input_of_many_dynamic_axes_is_tried_small() -> None:
    axes = ",".join(f"n{i}" for i in range(9))
    model = load(_model(f"(float[{axes},8] z) => (float[{axes},8] y) {{ {NORM} }}"))
    assert model.examples["z"].size < 1 << 24
    assert len(locate(model)) == 1


def test_an_input_that_is_too_large_is_refused() -> None:
    text = f"(float[20000,20000,8] z) => (float[20000,20000,8] y) {{ {NORM} }}"
    with pytest.raises(NormswapError, match=r"^test: its inputs have 3,200,000,000 elements"):
        load(_model(text))


def test_negative_sizes_are_dynamic() -> None:
    model = _model(f"(float[2,3,8] z) => (float[2,3,8] y) {{ {NORM} }}")
    model.graph.inputs[0].shape = ir.Shape([-1, 3, 8])
    assert load(model).inputs[0].shape == ("z_0", 3, 8)


def _functions(levels: int, calls: int, recursive: bool = False) -> ir.Model:
    parts = ['<domain: "own", opset_import: ["" : 17, "own" : 1]> F0 (a) => (b) { b = Relu(a) }']
    if recursive:
        parts[0] = parts[0].replace("Relu", f"own.F{levels - 1}")
    for level in range(1, levels):
        steps = (
            " ".join(f"v{i + 1} = own.F{level - 1}(v{i})" for i in range(calls))
            .replace(f"v{calls} =", "b =")
            .replace("(v0)", "(a)")
        )
        head = '<domain: "own", opset_import: ["" : 17, "own" : 1]>'
        parts.append(f"{head} F{level} (a) => (b) {{ {steps} }}")
    text = (
        f"(float[2,3,8] x) => (float[2,3,8] y) {{ z = own.F{levels - 1}(x) {NORM} }} "
        + " ".join(parts)
    )
    return _model(text)


def test_functions_are_inlined_within_bounds() -> None:
    assert len(locate(load(_functions(3, 4)))) == 1
    for levels, calls in ((5, 10), (41, 2), (2, 6000)):
        with pytest.raises(NormswapError, match=r"^test: its functions are too many to inline"):
            load(_functions(levels, calls))


def test_functions_that_call_themselves_are_named() -> None:
    with pytest.raises(NormswapError, match=r"^test: its function 'F\d' calls itself"):
        load(_functions(3, 2, recursive=True))


@pytest.mark.parametrize("dtype", [None, np.float64])
def test_a_loop_that_goes_on_for_ever_is_stopped(
    monkeypatch: pytest.MonkeyPatch, dtype: type | None
) -> None:
    monkeypatch.setattr(nodes, "LOOP_SECONDS", 0.3)
    model = load(_loop(2**60))
    feeds = {spec.name: np.zeros((2, 3, 8), spec.dtype) for spec in model.inputs}
    with pytest.raises(NormswapError, match=r"did not end within 0 s: a loop in it"):
        model.run(feeds, dtype)


def test_a_loop_within_a_branch_is_stopped_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "LOOP_SECONDS", 0.3)
    inner = ir.to_proto(_loop(2**60)).graph
    inputs, held = list(inner.input), list(inner.initializer)
    del inner.input[:], inner.initializer[:]
    graph = helper.make_graph(
        [helper.make_node("If", ["taken"], ["out"], then_branch=inner, else_branch=inner)],
        "test",
        [*inputs, helper.make_tensor_value_info("taken", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        held,
    )
    opsets = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    model = load(ir.serde.deserialize_model(proto))
    with pytest.raises(NormswapError, match="a loop in it may go on for ever"):
        model.run({"x": np.zeros((2, 3, 8), np.float32), "taken": np.array(True)})


def test_validating_it_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "LOOP_SECONDS", 0.3)
    with pytest.raises(NormswapError, match="a loop in it may go on for ever"):
        validate(load(_loop(2**60)), load(_loop(2**60)))
    assert validate(load(_loop(3)), load(_loop(3))).passed
