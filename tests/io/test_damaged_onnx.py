"""ONNX files that are not built as the standard says: one line that names the file, or the model is
read as ONNX Runtime reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normswap import NormswapError, fold, load, locate, swap
from normswap.io.load import model_from_onnx

C = 4
TEXT = f"""<ir_version: 9, opset_import: ["" : 17]> test
(float[B,3,{C}] x) => (float[B,3,2] y) {{
  m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q)
  e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) t = Transpose<perm = [0, 2, 1]>(g)
  b = BatchNormalization(t, gamma, beta, beta, gamma) u = Transpose<perm = [0, 2, 1]>(b)
  y = MatMul(u, w)
}}"""


def _proto() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT)
    arrays = {
        "two": np.float32(2), "eps": np.float32(1e-5), "gamma": np.ones(C, np.float32),
        "beta": np.zeros(C, np.float32), "w": np.ones((C, 2), np.float32),
    }  # fmt: skip
    for name, array in arrays.items():
        tensor = helper.make_tensor(name, TensorProto.FLOAT, array.shape, np.ravel(array))
        proto.graph.initializer.append(tensor)
    return proto


def _node(proto: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.op_type == op)


def _attribute(op: str, name: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        node = _node(proto, op)
        for old in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(old)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return change


def _inputs(op: str, *names: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        node = _node(proto, op)
        del node.input[:]
        node.input.extend(names)

    return change


def _tensor(name: str, **fields: object) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        for field, value in fields.items():
            if isinstance(value, list):
                tensor.ClearField(field)
                getattr(tensor, field).extend(value)
            else:
                setattr(tensor, field, value)

    return change


def _output(name: str) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: setattr(proto.graph.output[0], "name", name)


def _written(op: str, *names: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        node = _node(proto, op)
        del node.output[:]
        node.output.extend(names)

    return change


DAMAGE = {
    "an undefined name": _inputs("Sub", "x", "nowhere"),
    "an undefined output": _output("nowhere"),
    "an unnamed output": _output(""),
    "a missing input": _inputs("MatMul", "u"),
    "an omitted input": _inputs("MatMul", "u", ""),
    "too many inputs": _inputs("Sqrt", "e", "e"),
    "two inputs of five": _inputs("BatchNormalization", "t", "gamma"),
    "a cycle": _inputs("Sub", "x", "g"),
    "no output": _written("Sqrt"),
    "too many outputs": _written("Sqrt", "s", "s2"),
    "a name that is taken": _written("Sqrt", "e"),
    "a name of an input": _written("Sqrt", "x"),
    "a number for axes": _attribute("ReduceMean", "axes", 1),
    "a text for axes": _attribute("ReduceMean", "axes", "1"),
    "floats for axes": _attribute("ReduceMean", "axes", [0.5]),
    "a number for perm": _attribute("Transpose", "perm", 1),
    "an epsilon that is a text": _attribute("BatchNormalization", "epsilon", "small"),
    "a negative size": _tensor("gamma", dims=[-4]),
    "another count": _tensor("gamma", dims=[9]),
    "a huge count": _tensor("gamma", dims=[1 << 40]),
    "no data": _tensor("w", float_data=[]),
    "another type": _tensor("w", data_type=7),
    "no such type": _tensor("w", data_type=99),
    "no type": _tensor("w", data_type=0),
}


WITHOUT_SENSE = {
    "a perm too short": _attribute("Transpose", "perm", [0, 1]),
    "a perm of other axes": _attribute("Transpose", "perm", [0, 2, 7]),
    "a perm with one axis twice": _attribute("Transpose", "perm", [0, 1, 1]),
    "an axis that is not there": _attribute("ReduceMean", "axes", [9]),
}


@pytest.mark.parametrize("what", WITHOUT_SENSE)
def test_attributes_without_sense_lead_to_no_traceback(what: str, tmp_path: Path) -> None:
    proto = _proto()
    WITHOUT_SENSE[what](proto)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(proto.SerializeToString())
    for work in (locate, lambda m: swap(m, to="fused"), fold):
        with contextlib.suppress(NormswapError):
            work(load(path))


@pytest.mark.parametrize("what", DAMAGE)
def test_one_line_that_names_the_file(what: str, tmp_path: Path) -> None:
    proto = _proto()
    DAMAGE[what](proto)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(proto.SerializeToString())

    def work() -> None:
        model = load(path)
        locate(model)
        swap(model, to="fused")
        fold(model)

    with pytest.raises(NormswapError) as caught:
        work()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [b"gamma", b"d", b"x", b"Sub"])
def test_names_that_are_not_utf8(name: bytes, tmp_path: Path) -> None:
    content = _proto().SerializeToString()
    path = tmp_path / "damaged.onnx"
    field = bytes([len(name)])
    path.write_bytes(content.replace(field + name, field + b"\xa0" * len(name), 1))
    with pytest.raises(NormswapError, match=str(path)):
        locate(load(path))


def test_a_constant_that_is_no_number_makes_no_norm() -> None:
    for value in (np.nan, np.inf, -np.inf, 3.4e38):
        for name in ("two", "eps", "gamma", "w", "beta"):
            proto = _proto()
            _tensor(name, float_data=[float(np.float32(value))] * (8 if name == "w" else C))(proto)
            if name in ("two", "eps"):
                _tensor(name, float_data=[float(np.float32(value))])(proto)
            model = load(ir.serde.deserialize_model(proto))
            locate(model)
            swap(model, to="fused")
            fold(model)


def test_a_norm_that_nothing_reads_is_none() -> None:
    proto = _proto()
    proto.graph.node.extend(
        [
            helper.make_node("LayerNormalization", ["x", "gamma"], ["dead"]),
            helper.make_node("Relu", ["dead"], ["dead2"]),
        ]
    )
    model = load(ir.serde.deserialize_model(proto))
    assert [site.kind for site in locate(model)] == ["layer_norm", "batch_norm"]
    assert swap(model, to="rmsnorm").model.graph.nodes


def _with_input(kind: onnx.TypeProto) -> onnx.ModelProto:
    proto = _proto()
    proto.graph.input.append(helper.make_value_info("more", kind))
    return proto


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])


@pytest.mark.parametrize(
    "kind",
    [
        helper.make_sequence_type_proto(FLOATS),
        helper.make_optional_type_proto(FLOATS),
        helper.make_map_type_proto(TensorProto.INT64, FLOATS),
        onnx.TypeProto(),
    ],
    ids=["sequence", "optional", "map", "nothing"],
)
def test_inputs_that_are_no_tensors(kind: onnx.TypeProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_with_input(kind).SerializeToString())
    with pytest.raises(NormswapError, match=str(path)):
        load(path)


def test_sequences_within_a_model() -> None:
    proto = _proto()
    parts = helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1)
    proto.graph.node.insert(0, parts)
    whole = helper.make_node("ConcatFromSequence", ["parts"], ["whole"], axis=1)
    proto.graph.node.insert(1, whole)
    _inputs("MatMul", "z", "w")(proto)
    proto.graph.node.insert(
        len(proto.graph.node) - 1, helper.make_node("Add", ["u", "whole"], ["z"])
    )
    model = load(ir.serde.deserialize_model(proto))
    assert len(locate(model)) == 2
    assert swap(model, to="fused").done
    fold(model)


def test_an_error_of_our_own_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_from_onnx(ir.serde.deserialize_model(_proto()), "model")

    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("normswap.model.locate", broken)
    with pytest.raises(KeyError, match="ours"):
        locate(model)
