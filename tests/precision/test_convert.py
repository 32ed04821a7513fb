"""Models in half precision: types, islands with their reasons, and what the files give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.graph.graph import BFLOAT16, is_floating
from normswap.parity.report import ApproximateOutput
from tests.parity.conftest import Builder
from tests.parity.test_simulate import SAMPLES, Block

HALF = np.dtype(np.float16)
KINDS = pytest.mark.parametrize("kind", ["fx", "onnx"])
Make = Callable[..., ns.Model]


@pytest.fixture
def model(build: Builder, kind: str) -> ns.Model:
    return build(kind, Block(), {"x": torch.from_numpy(SAMPLES[:2])})


def floats(model: ns.Model) -> Counter[Any]:
    """How many values there are of each floating dtype."""
    values = [v for node in model.graph.nodes for v in (*node.inputs, *node.outputs) if v]
    found = [v for v in dict.fromkeys(values) if v.dtype is not None and is_floating(v.dtype)]
    return Counter(v.dtype for v in found if v.shape != () or not v.is_constant)


def sqnr(reference: ns.Model, candidate: ns.Model, data: Any = SAMPLES) -> float:
    report = ns.validate(reference, candidate, data=data, contract="approximate")
    assert report.passed, report.findings
    (output,) = report.outputs
    assert isinstance(output, ApproximateOutput)
    if output.max_abs_error == 0:
        return math.inf  # ONNX Runtime drops a Cast there and back
    assert output.sqnr_db is not None
    return output.sqnr_db


@KINDS
def test_all_between_the_casts_is_in_half(model: ns.Model, kind: str) -> None:
    result = ns.convert(model, "float16")
    assert (result.islands, result.notes) == ([], [])
    assert [spec.dtype for spec in result.model.inputs] == [np.float32]
    assert floats(result.model) == Counter(
        {HALF: floats(result.model)[HALF], np.dtype(np.float32): 2}
    )
    assert [n.op for n in result.model.graph.nodes if n.op == "Cast"] == ["Cast", "Cast"]
    assert sqnr(model, result.model) > 40
    assert set(floats(model)) == {np.dtype(np.float32)}  # it is not changed
    assert result.model.history[-1].name == "conversion to float16"


@KINDS
def test_inputs_and_outputs_too(model: ns.Model, kind: str) -> None:
    result = ns.convert(model, "float16", keep_io=False).model
    assert set(floats(result)) == {HALF}
    assert not [n for n in result.graph.nodes if n.op == "Cast"]
    (spec,) = result.inputs
    assert spec.dtype == HALF
    (found,) = result.run({spec.name: SAMPLES.astype(HALF)}).values()
    (wanted,) = model.run({model.inputs[0].name: SAMPLES}).values()
    assert found.dtype == HALF
    np.testing.assert_allclose(found.astype(np.float32), wanted, atol=0.02)


@KINDS
def test_a_norm_whose_epsilon_vanishes_is_an_island(build: Builder, kind: str) -> None:
    model = build(kind, Block(epsilon=1e-12), {"x": torch.from_numpy(SAMPLES[:2])})
    result = ns.convert(model, "float16")
    (island,) = result.islands
    assert island.name == model.sites[0].name
    assert "1e-12" in island.reason
    assert "is 0 in float16" in island.reason
    constant = {"x": np.ones_like(SAMPLES)}
    rows = {model.inputs[0].name: constant["x"]}
    (found,) = result.model.run(rows).values()
    assert np.isfinite(found).all()
    assert sqnr(model, result.model) > 40
    assert ns.validate(model, result.model, data=SAMPLES, simulate="float16").passed
    assert ns.convert(model, "bfloat16").islands == []
    fused = ns.convert(ns.swap(model, to="fused").model, "float16")
    assert fused.islands == []  # an attribute


@KINDS
def test_what_overflows_on_data_is_an_island(build: Builder, kind: str) -> None:
    model = build(kind, Block(gain=2e3), {"x": torch.from_numpy(SAMPLES[:2])})
    plain = ns.convert(model, "float16")
    assert plain.islands == []
    asked = ns.convert(model, "float16", data=SAMPLES)
    (island,) = asked.islands
    assert island.name == model.sites[0].name
    assert "on the data is beyond float16" in island.reason
    assert sqnr(model, asked.model) > 40
    # In torch on the CPU the squares are rounded to float16 as well.
    simulated = [
        ns.validate(model, m, data=SAMPLES, simulate="float16").outputs[0].sqnr_db or 0.0  # type: ignore[union-attr]
        for m in (plain.model, asked.model)
    ]
    assert simulated[0] < 20
    assert simulated[1] > 40


@KINDS
def test_islands_that_are_asked_for(model: ns.Model, kind: str) -> None:
    site = model.sites[0].name
    result = ns.convert(model, "float16", keep=[site])
    assert [(i.name, i.reason) for i in result.islands] == [(site, "asked for")]
    with pytest.raises(NormswapError, match="keep 'nothing' matches no norm, module or value"):
        ns.convert(model, "float16", keep=["nothing"])


@KINDS
def test_files(model: ns.Model, kind: str, tmp_path: Path) -> None:
    for keep_io in (False,) if kind == "fx" else (True, False):
        result = ns.convert(model, "float16", keep_io=keep_io)
        feeds = {s.name: SAMPLES.astype(s.dtype) for s in result.model.inputs}
        (wanted,) = result.model.run(feeds).values()
        for suffix in ("pt2", "onnx") if kind == "fx" else ("onnx",):
            path = tmp_path / f"half-{keep_io}.{suffix}"
            ns.save(result.model, path)
            loaded = ns.load(path)
            assert [s.dtype for s in loaded.inputs] == [s.dtype for s in result.model.inputs]
            (found,) = loaded.run(feeds).values()
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found.astype(float), wanted.astype(float), atol=0.01)
            if suffix == "onnx":
                onnx.checker.check_model(onnx.load(path), full_check=True)


def test_numbers_that_stand_for_infinity(onnx_model: Make) -> None:
    nodes = [("Sub", ["one", "m"], "n", {}), ("Mul", ["n", "low"], "a", {}),
             ("Add", ["x", "a"], "l", {}), ("Softmax", ["l"], "y", {})]  # fmt: skip
    inputs = {"x": (("batch", 4), np.float32), "m": (("batch", 4), np.float32)}
    constants = {"one": np.float32(1), "low": np.float32(np.finfo(np.float32).min)}
    model = onnx_model(nodes, inputs, ["y"], constants)
    data = {"x": SAMPLES[:, 0, :4], "m": np.tile(np.float32([1, 1, 0, 1]), (20, 1))}
    result = ns.convert(model, "float16", data=data)
    assert result.islands == []
    assert result.notes == ["numbers that stand for infinity are 65504 now: low"]
    assert sqnr(model, result.model, data) > 50
    report = ns.validate(model, result.model, data=data, simulate="float16")
    assert report.passed
    assert not [finding for finding in report.findings if finding.kind == "overflow"]


def test_constants_beyond_the_format(onnx_model: Make) -> None:
    weights = {"big": np.float32([7e4, 1, 1, 1]), "small": np.float32([1e-9, 1, 1, 1])}
    nodes = [("Mul", ["x", "big"], "z", {}), ("Add", ["z", "small"], "y", {})]
    model = onnx_model(nodes, {"x": (("batch", 4), np.float32)}, ["y"], weights)
    result = ns.convert(model, "float16")
    assert [island.name for island in result.islands] == ["z"]
    assert "7e+04 ('big'), beyond float16" in result.islands[0].reason
    assert result.notes == ["weights that are too small and became 0: 1, in 1 tensors"]


def test_a_constant_that_both_read(onnx_model: Make) -> None:
    nodes = [("Mul", ["x", "c"], "z", {}), ("Add", ["z", "c"], "y", {})]
    constants = {"c": np.float32([1.1, 2, 3, 4])}
    model = onnx_model(nodes, {"x": (("batch", 4), np.float32)}, ["y"], constants)
    graph = ns.convert(model, "float16", keep=["z"]).model.graph
    held = {v.name: v.dtype for node in graph.nodes for v in node.inputs if v and v.is_constant}
    assert held == {"c": np.float32, "c.float16": HALF}


def test_operators_that_have_no_form_in_half(onnx_model: Make) -> None:
    nodes = [("Neg", ["x"], "n", {}), ("Det", ["n"], "d", {}), ("Neg", ["d"], "y", {})]
    model = onnx_model(nodes, {"x": (("batch", 2, 2), np.float32)}, ["y"])
    assert ns.convert(model, "float16").islands == []  # Det has one
    nodes = [("Range", ["zero", "ten", "one"], "r", {}), ("Mul", ["x", "r"], "y", {})]
    constants = {"zero": np.float32(0), "ten": np.float32(4), "one": np.float32(1)}
    model = onnx_model(nodes, {"x": (("batch", 4), np.float32)}, ["y"], constants)
    result = ns.convert(model, "float16")
    assert [(i.name, i.reason) for i in result.islands] == [
        ("r", "ONNX has no float16 form of it in this opset")
    ]
    assert sqnr(model, result.model, SAMPLES[:, 0, :4]) > 50


def test_branches_are_islands_that_read_float32() -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["h", "w"], [f"{op}_out"])  # both from outside
        return helper.make_graph(
            [node], op, [], [helper.make_tensor_value_info(f"{op}_out", kind, None)]
        )

    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["h"]),
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Less", ["s", "zero"], ["c"]),
            helper.make_node("If", ["c"], ["z"], then_branch=branch("Add"),
                             else_branch=branch("Sub")),
            helper.make_node("Mul", ["z", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, ["batch", 4])],
        [onnx.numpy_helper.from_array(np.float32([1.1, 2, 3, 4]), "w"),
         onnx.numpy_helper.from_array(np.float32(0), "zero")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ns.load(ir.serde.deserialize_model(proto))
    result = ns.convert(model, "float16")
    assert [(i.name, i.reason) for i in result.islands] == [
        ("z", "it runs bodies of other operators")
    ]
    assert sqnr(model, result.model, SAMPLES[:, 0, :4]) > 50


def test_weights_that_are_inputs_too(onnx_model: Make) -> None:
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Mul", ["x", "w"], ["y"])],
            "g",
            [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4])
                for name in "xw"
            ],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])],
            [onnx.numpy_helper.from_array(np.float32([1, 2, 3, 4]), "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    result = ns.convert(ns.load(ir.serde.deserialize_model(proto)), "float16")
    assert result.notes == ["weights that were also inputs are constants now: w"]
    (found,) = result.model.run({"x": np.ones(4, np.float32)}).values()
    assert found.tolist() == [1, 2, 3, 4]


def test_sizes_of_a_resize_stay_as_they_are(onnx_model: Make) -> None:
    nodes = [("Resize", ["x", "", "scales"], "y", {"mode": "nearest"})]
    constants = {"scales": np.float32([1, 1, 2, 2])}
    model = onnx_model(nodes, {"x": (("batch", 1, 4, 4), np.float32)}, ["y"], constants)
    result = ns.convert(model, "float16")
    assert not result.islands
    data = SAMPLES[:, :1, :].reshape(-1, 1, 4, 4)
    assert sqnr(model, result.model, data) > 50


def test_dtypes_among_the_arguments_of_torch(build: Builder) -> None:
    class Typed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = torch.arange(16, dtype=torch.float32, device=x.device) / 16
            low = torch.full((6, 1), torch.finfo(torch.float32).min)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                product = x @ x.transpose(-1, -2)
            weights = torch.softmax(product.float() + torch.tril(low * 0), -1)
            return weights @ (x * steps).to(torch.float32)

    model = ns.load(Typed(), example_inputs=(torch.from_numpy(SAMPLES[:2]),))
    result = ns.convert(model, "float16")
    dtypes = set(floats(result.model))
    assert BFLOAT16 not in dtypes
    report = ns.validate(model, result.model, data=SAMPLES, contract="approximate")
    assert report.passed, report.findings


def test_a_batch_norm_of_torch(build: Builder) -> None:
    norm = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(16, 4))
    model = build("fx", norm, {"x": torch.from_numpy(SAMPLES[:2])})
    assert sqnr(model, ns.convert(model, "float16").model) > 40
    wide = ns.convert(model, "float16", keep=["0"])
    assert len(wide.islands) == 1
    assert sqnr(model, wide.model) > 40


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_stay_numbers(build: Builder, dtype: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * self.scale, self.scale.exp()

    model = ns.load(Scaled(), example_inputs=(torch.from_numpy(SAMPLES[:2]),))
    result = ns.convert(model, dtype).model
    shapes = [array.shape for array in result.run({"x": SAMPLES}).values()]
    assert shapes == [SAMPLES.shape, ()]
    assert model.graph.whole(result.graph.nodes[0].output.dtype)([SAMPLES])[1].shape == ()


def test_bad_usage(onnx_model: Make) -> None:
    model = onnx_model([("Neg", ["x"], "y", {})], {"x": (("batch", 3), np.float32)}, ["y"])
    with pytest.raises(NormswapError, match="'float8' is none of the formats"):
        ns.convert(model, "float8")
    held = {"c": np.float16(1)}
    half = onnx_model([("Add", ["x", "c"], "y", {})], {"x": (("batch", 3), HALF)}, ["y"], held)
    with pytest.raises(NormswapError, match="weights in half precision already"):
        ns.convert(half, "float16")
