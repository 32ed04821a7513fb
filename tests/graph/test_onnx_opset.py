"""Raising the opset: nodes that mean the same stay, others are converted, values stay the objects
that they were, and the file records of its values' shapes what it recorded before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import normswap as ns
from normswap.errors import NormswapError
from normswap.graph.onnx.graph import OnnxGraph, read_graph
from normswap.graph.operators import operator
from tests import effort
from tests.graph.onnx_text import onnx_graph
from tests.onnx_cases import cases, difference, exception, run
from tests.zoo.exports import exported, model_as

SAME = (
    "(float[B,4] x) => (float[B,4] y) "
    "{ s = Shape(x) p = Pow(x, two) r = Reshape(p, s) y = Identity(r) }"
)
TWO = {"two": np.array(2, np.float32)}


def test_nodes_that_mean_the_same_stay() -> None:
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
    graph.require("LayerNormalization")
    assert graph.opset == 17
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(graph.whole()([x, np.array(False)])[0], -x)


# -- what stays the object that it was -----------------------------------------------------------

COERCED = (
    "(float[B,3,4] x) => (float[B,3,4] y) "
    "{ r = Relu(x) s = Softmax<axis = 1>(r) u = Unsqueeze<axes = [-1]>(s) "
    "q = Squeeze<axes = [-1]>(u) m = Mul(q, two) y = Neg(m) }"
)


def _check_consistent(graph: OnnxGraph) -> None:
    """Values and nodes know each other, and their handles are those of the model."""
    known = set(graph.values())
    assert [v.raw for v in graph.outputs] == list(graph.model.graph.outputs)
    for value in known:
        assert graph.value(value.name) is value
        assert value.raw.name == value.name
        assert all(node in graph.nodes and node.inputs[i] is value for node, i in value.uses)
        assert value.producer is None or value in value.producer.outputs
    for node in graph.nodes:
        assert node.raw.graph is graph.model.graph
        assert [v.raw for v in node.outputs] == list(node.raw.outputs)
        for index, value in enumerate(node.inputs):
            assert value is None or (value in known and (node, index) in value.uses)
        assert all(value.producer is node for value in node.outputs)


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_values_stay_the_objects_that_they_are(op: str) -> None:
    graph = onnx_graph(COERCED, TWO, opset=11)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    before = graph.whole()([x])[0]
    values = {value.name: value for value in graph.values()}
    types = {value.name: (value.shape, value.dtype) for value in graph.values()}
    nodes = {node.output.name: node for node in graph.nodes}
    graph.require(op)
    _check_consistent(graph)
    now = {value.name: value for value in graph.values()}
    assert all(now[name] is value for name, value in values.items())
    assert {name: (now[name].shape, now[name].dtype) for name in types} == types
    assert graph.inputs == [values["x"]]
    assert graph.outputs == [values["y"]]
    made = {node.output.name: node for node in graph.nodes}
    assert made["s"] is not nodes["s"]  # its Softmax means something else by now
    for name in ("r", "u", "q", "m", "y"):  # axes are attributes of the view in every opset
        assert made[name] is nodes[name]
    assert values["m"].readers == [nodes["y"]]
    np.testing.assert_allclose(graph.whole()([x])[0], before, rtol=1e-6)


def test_later_versions_are_converted_in_place() -> None:
    text = (
        "(float[B,4,3] x) => (float[B,4,3] y) "
        "{ g = GroupNormalization<num_groups = 2>(x, w, b) r = Relu(g) y = Neg(r) }"
    )
    pair = {"w": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    graph = onnx_graph(text, pair, opset=18)
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    before = graph.whole()([x])[0]
    values, nodes = list(graph.values()), {node.output.name: node for node in graph.nodes}
    graph.require("RMSNormalization")
    _check_consistent(graph)
    assert set(values) <= set(graph.values())
    made = {node.output.name: node for node in graph.nodes}
    assert made["g"] is not nodes["g"]  # its weights are per channel since opset 21
    assert made["r"] is nodes["r"]
    assert made["y"] is nodes["y"]
    np.testing.assert_allclose(graph.whole()([x])[0], before, rtol=1e-6)


def test_values_of_a_model_stay() -> None:
    graph = model_as("spelled_vit", "torchscript-14").graph.copy()
    assert isinstance(graph, OnnxGraph)
    values = {value.name: value for value in graph.values()}
    graph.require("RMSNormalization")
    _check_consistent(graph)
    assert graph.opset == 23
    now = {value.name: value for value in graph.values()}
    assert all(now.get(name, value) is value for name, value in values.items())
    computed = [node.output.name for node in graph.nodes]
    assert len(values.keys() & set(computed)) > len(computed) / 2


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_what_is_raised_computes_the_same(op: str) -> None:
    wrong, compared = {}, 0
    for case in cases()[:: effort.examples_of(24, 1)]:
        for opset, older in [*case.in_versions(), (case.model.opset_import[0].version, case)]:
            if opset >= operator(op).opset or exception(case) or case.has_sequences:
                continue
            try:
                graph = read_graph(ir.serde.deserialize_model(older.model))
                before = run(older.model.SerializeToString(), older.inputs)
                graph.require(op)
                raised = ir.serde.serialize_model(graph.model).SerializeToString()
                after = run(raised, [older.feeds[value.name] for value in graph.inputs])
            except Exception:  # refused, by us or (before, or for want of a kernel) by the runtime
                continue
            compared += 1
            for own, expected in zip(after, before, strict=True):
                if problem := difference(own, expected, loose=1e-5):
                    wrong[older.name] = problem
    assert not wrong
    assert compared > 60


RAISED = [
    # A default that has changed, and axes of one.
    ("(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax(x) }", {}, 11),
    ("(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax<axis = 1>(x) }", {}, 11),
    ("(float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax<axis = 0>(x) }", {}, 12),
    # Coordinates that are no choice before opset 11.
    ("(float[1,1,4,5] x) => (float[1,1,6,9] y) { y = Resize<mode = \"nearest\">(x, s) }",
     {"s": np.array([1, 1, 1.6, 1.8], np.float32)}, 10),
    ("(float[1,1,4,5] x) => (float[1,1,2,3] y) { y = Resize<mode = \"nearest\">(x, s) }",
     {"s": np.array([1, 1, 0.5, 0.7], np.float32)}, 10),
    ("(float[1,1,4,5] x) => (float[1,1,6,9] y) { y = Resize<mode = \"linear\">(x, s) }",
     {"s": np.array([1, 1, 1.6, 1.8], np.float32)}, 10),
    # Operators that are gone.
    ("(float[1,1,4,5] x) => (float[1,1,8,9] y) { y = Upsample(x, s) }",
     {"s": np.array([1, 1, 2, 1.8], np.float32)}, 9),
    ("(float[2,3] x) => (float[2,3] y) { y = Scatter<axis = 1>(x, i, u) }",
     {"i": np.array([[1, 0], [2, 1]]), "u": np.ones((2, 2), np.float32)}, 10),
    # Attributes that are inputs by now.
    ("(float[2,3] x) => (float[2,2] y, int64[2,2] i) { y, i = TopK<k = 2>(x) }", {}, 9),
    ("(float[2,3] x) => (float[2,3] y) { y = Clip<min = -0.5, max = 0.5>(x) }", {}, 10),
    ("(float[2,3] x) => (float[4,3] y) "
     "{ y = Pad<pads = [1, 0, 1, 0], value = 2.0>(x) }", {}, 10),
]  # fmt: skip


@pytest.mark.parametrize(("text", "constants", "opset"), RAISED)
def test_changed_meanings_are_written_out(
    text: str, constants: dict[str, np.ndarray], opset: int
) -> None:
    graph = onnx_graph(text, constants, opset=opset)
    shape = graph.inputs[0].shape
    x = np.random.default_rng(0).standard_normal(shape or ()).astype(np.float32)
    before = graph.whole()([x])
    graph.require("LayerNormalization")
    _check_consistent(graph)
    assert graph.opset == 17
    for old, new in zip(before, graph.whole()([x]), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6)


# -- where it cannot be raised ---------------------------------------------------------------------

UNKNOWN = "(float[B,4] x) => (float[B,4] y) { z = Unheard(x) y = Relu(z) }"


def test_an_operator_that_no_version_has_is_the_reason() -> None:
    graph = onnx_graph(UNKNOWN, {}, opset=14)
    with pytest.raises(NormswapError) as error:
        graph.require("RMSNormalization")
    assert str(error.value) == (
        "RMSNormalization needs opset 23, and Unheard (z) cannot be raised from opset 14 to 23: no "
        "version of the operator set has this operator; export the model again with a newer opset"
    )
    assert graph.opset == 14
    _check_consistent(graph)


BRANCH = (
    "(float[2,3,4] x, bool c) => (float[2,3,4] y) { "
    "y = If(c) <then_branch = t () => (float[2,3,4] a) { h = Relu(x) a = Hardmax<axis = 1>(h) }, "
    "else_branch = e () => (float[2,3,4] b) { b = Neg(x) }> }"
)
REFUSED = [
    (BRANCH, {}, 11, "Hardmax (a)"),
    ("(float[B,4,3] x, float[2] w) => (float[B,4,3] y) "
     "{ y = GroupNormalization<num_groups = 2>(x, w, w) }", {}, 18, "its scales are computed"),
    ("(float[1,1,4,5] x) => (float[1,1,2,9] y) { y = Resize<mode = \"nearest\">(x, s) }",
     {"s": np.array([1, 1, 0.5, 1.8], np.float32)}, 10, "enlarges one axis and shrinks another"),
    ("(float[2,3] x) => (float[2,3] y) { y = Add<axis = 0, broadcast = 1>(x, s) }",
     {"s": np.ones(2, np.float32)}, 6, "opset 6 is too old"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "constants", "opset", "reason"), REFUSED)
def test_what_is_not_proven_is_refused(
    text: str, constants: dict[str, np.ndarray], opset: int, reason: str
) -> None:
    graph = onnx_graph(text, constants, opset=opset)
    before = ir.serde.serialize_model(graph.model)
    with pytest.raises(NormswapError) as error:
        graph.require("RMSNormalization")
    assert reason in str(error.value)
    assert ir.serde.serialize_model(graph.model) == before
    assert all(v.raw.uses() or not v.uses for v in graph.values())


def test_a_form_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normswap.graph.onnx.opset.RULES", {})  # as if no rule were known
    graph = onnx_graph(
        "(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }", opset=11
    )
    with pytest.raises(NormswapError, match="its new form yields something else"):
        graph.require("LayerNormalization")
    assert graph.opset == 11


# -- recorded shapes -------------------------------------------------------------------------------

WIDTH = 8


def _residual_block(annotated: bool) -> onnx.ModelProto:
    """Opset 14: a decomposed LayerNorm of a sum, whose shape follows from nodes on shapes."""
    nodes = [
        make_node("Shape", ["tokens"], ["sizes"]),
        make_node("Gather", ["sizes", "first"], ["count"]),
        make_node("Concat", ["count", "others"], ["shape"], axis=0),
        make_node("Relu", ["tokens"], ["active"]),
        make_node("Reshape", ["active", "shape"], ["branch"]),
        make_node("Add", ["branch", "tokens"], ["sum"]),
        make_node("ReduceMean", ["sum"], ["mean"], axes=[-1]),
        make_node("Sub", ["sum", "mean"], ["centred"]),
        make_node("Pow", ["centred", "two"], ["squares"]),
        make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        make_node("Add", ["variance", "epsilon"], ["safe"]),
        make_node("Sqrt", ["safe"], ["deviation"]),
        make_node("Div", ["centred", "deviation"], ["unit"]),
        make_node("Mul", ["unit", "gamma"], ["scaled"]),
        make_node("Add", ["scaled", "beta"], ["normed"]),
    ]
    constants = {
        "first": np.array([0]),
        "others": np.array([5, WIDTH]),
        "two": np.float32(2),
        "epsilon": np.float32(1e-5),
        "gamma": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32),
        "beta": np.linspace(-1, 1, WIDTH, dtype=np.float32),
    }
    graph = make_graph(
        nodes,
        "block",
        [make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", 5, WIDTH])],
        [make_tensor_value_info("normed", TensorProto.FLOAT, ["batch", 5, WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    if annotated:
        shape = [1, 5, WIDTH]
        graph.value_info.append(make_tensor_value_info("sum", TensorProto.FLOAT, shape))
    return make_model(graph, opset_imports=[make_opsetid("", 14)], ir_version=8)


def _shapes(path: Path) -> dict[str, list[int]]:
    graph = onnx.load(path).graph
    computed = {output for node in graph.node for output in node.output}
    return {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in graph.value_info
        if info.name in computed and info.type.tensor_type.HasField("shape")
    }


@pytest.mark.parametrize("to", ["fused", "rmsnorm"])
@pytest.mark.parametrize("annotated", [False, True])
def test_shapes_are_recorded_as_before(to: str, annotated: bool, tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(_residual_block(annotated), source)
    result = ns.swap(ns.load(source), to=to)
    ns.save(result.model, output)
    assert onnx.load(output).opset_import[0].version > 14 or not result.modified
    assert _shapes(output) == _shapes(source) == ({"sum": [1, 5, WIDTH]} if annotated else {})


def test_onnxruntime_fuses_no_more_of_it(tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(exported("spelled_vit", "torchscript-14"), source)
    ns.save(ns.swap(ns.load(source), to="fused").model, output)
    for path in (source, output):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert kinds.count("LayerNormalization") == 5
        assert "SkipLayerNormalization" not in kinds
