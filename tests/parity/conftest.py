"""Builders of small models in both kinds of graph, without the loader."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from normswap.graph.fx.graph import FxGraph
from normswap.graph.graph import Graph
from normswap.graph.onnx.graph import read_graph
from normswap.model import InputSpec, Model

Shape = tuple[int | str, ...]


@dataclass
class Builder:
    """Makes a ``Model`` of a torch module. Captures are kept by ``key`` and given new weights."""

    _captured: dict[str, torch.fx.GraphModule] = field(default_factory=dict)
    _exported: dict[str, onnx.ModelProto] = field(default_factory=dict)

    def __call__(
        self, kind: str, module: nn.Module, inputs: Mapping[str, torch.Tensor], key: str = ""
    ) -> Model:
        module = module.eval()
        graph = self._fx(module, inputs, key) if kind == "fx" else self._onnx(module, inputs, key)
        names = [value.name for value in graph.inputs]
        specs = [
            InputSpec(n, ("batch", *t.shape[1:]), t.numpy().dtype)
            for n, t in zip(names, inputs.values(), strict=True)
        ]
        examples = dict(zip(names, (t.numpy() for t in inputs.values()), strict=True))
        outputs = tuple(f"output{i}" for i in range(len(graph.outputs)))
        return Model(graph, f"{kind}-model", tuple(specs), outputs, examples)

    def _fx(self, module: nn.Module, inputs: Mapping[str, torch.Tensor], key: str) -> Graph:
        captured = self._captured.get(key) or _capture(module, tuple(inputs.values()))
        if key:
            self._captured[key] = captured
        captured = copy.deepcopy(captured)
        captured.load_state_dict(module.state_dict())
        return FxGraph(captured)

    def _onnx(self, module: nn.Module, inputs: Mapping[str, torch.Tensor], key: str) -> Graph:
        exported = self._exported.get(key) or _export(module, inputs)
        if key:
            self._exported[key] = exported
        weights = module.state_dict()
        for initializer in exported.graph.initializer:
            initializer.raw_data = weights[initializer.name].numpy().tobytes()
        return read_graph(
            ir.serde.deserialize_model(onnx.load_from_string(exported.SerializeToString()))
        )


def _capture(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.fx.GraphModule:
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    captured = program.module(check_guards=False)
    return torch.fx.GraphModule(captured, captured.graph)


def _export(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        module, tuple(inputs.values()), file,  # type: ignore[arg-type]
        dynamo=False, opset_version=17,
        do_constant_folding=False,  # so that initializers are the parameters, by name
        input_names=list(inputs), dynamic_axes={name: {0: "batch"} for name in inputs},
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@pytest.fixture(scope="session")
def build() -> Builder:
    return Builder()


@pytest.fixture(scope="session")
def onnx_model() -> Callable[..., Model]:
    """A model of a few ONNX nodes: ``nodes`` are (op, inputs, output, attributes)."""
    return _onnx_model


def _onnx_model(
    nodes: Sequence[tuple[str, Sequence[str], str, dict[str, Any]]],
    inputs: Mapping[str, tuple[Shape, Any]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    name: str = "model",
) -> Model:
    specs = tuple(InputSpec(n, shape, np.dtype(d)) for n, (shape, d) in inputs.items())
    graph = helper.make_graph(
        [helper.make_node(op, list(reads), [y], **a) for op, reads, y, a in nodes],
        name,
        [
            helper.make_tensor_value_info(s.name, helper.np_dtype_to_tensor_dtype(s.dtype), s.shape)
            for s in specs
        ],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    view = read_graph(ir.serde.deserialize_model(proto))
    examples = {
        s.name: np.ones([2 if isinstance(n, str) else n for n in s.shape], s.dtype) for s in specs
    }
    return Model(view, name, specs, tuple(outputs), examples)
