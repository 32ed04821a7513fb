"""Operators over the field are what their graph computes, and what tells two of them apart does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import nn

import normswap as ns
from normswap.field.evaluation import Side, drawn, evaluate
from normswap.field.exact import Exact
from normswap.field.values import Field
from normswap.graph.graph import Value, is_floating
from normswap.model import Model
from normswap.parity.certified import certified
from normswap.parity.probes import draw_feeds
from tests.effort import ALL
from tests.zoo.exports import FX, NotExportable, model_as
from tests.zoo.models import FAMILIES

ONNX = "torchscript-14"
SOME = [("hf_vit", FX), ("hf_clip", ONNX)]


def _torch_model(activation: nn.Module) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(8), activation, nn.Linear(8, 8))
    return ns.load(module.eval(), example_inputs=(torch.randn(2, 3, 8),))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.GELU(), nn.GELU("tanh")),
        (nn.ELU(), nn.ELU(0.5)),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.Softplus(), nn.Softplus(2.0)),
        (nn.Hardtanh(), nn.Hardtanh(0, 1)),
        (nn.Softmax(-1), nn.Softmax(1)),
    ],
    ids=lambda module: repr(module),
)
def test_options_tell_functions_apart(one: nn.Module, other: nn.Module) -> None:
    models = [_torch_model(activation) for activation in (one, other)]
    assert not certified(*models).certified
    assert certified(models[0], models[0].copy()).certified


def _onnx_model(op: str, opset: int, **attributes: Any) -> Model:
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3, 4, 4]) for name in "xy"
    ]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], **attributes)], "", *zip(ends))
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return ns.load(ir.serde.deserialize_model(proto))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [1, 3])
def test_versions_tell_functions_apart(op: str, axis: int) -> None:
    """Up to opset 12 a softmax is one of all axes from ``axis`` on: of one, it is the later one."""
    old, new = (_onnx_model(op, opset, axis=axis) for opset in (11, 13))
    same = op == "Softmax" and axis == 3
    assert certified(old, new).certified == same
    assert certified(old, _onnx_model(op, 12, axis=axis)).certified


@pytest.mark.parametrize(
    ("name", "form"), [(n, f) for n in FAMILIES for f in (FX, ONNX)] if ALL else SOME
)
def test_shadows_are_what_the_graph_computes(name: str, form: str) -> None:
    """A rule that overlooks an option of its operator gives another shadow."""
    try:
        model = model_as(name, form)
    except NotExportable as error:
        pytest.skip(str(error))
    graph, over, found = model.graph, Field(1), dict[Value, np.ndarray]()

    def watch(value: Value, exact: Exact) -> None:
        if np.isfinite(exact.shadow).all() and not value.is_constant:
            found[value] = exact.shadow

    feeds = draw_feeds(model, "normal", 2, [0])
    arrays = {v.name: feeds[s.name] for v, s in zip(graph.inputs, model.inputs, strict=True)}
    given = drawn(over, arrays)
    side = Side(graph, graph.inputs, graph.outputs)
    assert not evaluate(over, side, [given[v.name] for v in graph.inputs], watch).refusal
    wide = {
        v: a.astype(np.float64) if is_floating(a.dtype) else a
        for v, a in zip(graph.inputs, arrays.values(), strict=True)
    }
    assert len(found) > 50
    for value, right in zip(found, graph.evaluate(list(found), wide, np.float64), strict=True):
        scale = np.abs(right).max(initial=1e-30)
        assert np.abs(found[value] - right).max(initial=0) <= 1e-6 * scale, value
