"""The operators in ONNX's standard ones, for ``torch.onnx.export(..., dynamo=True)``.

torch.onnx.export(functional(module), args, file, dynamo=True, opset_version=18,
                  custom_translation_table=translations(18))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import getitem
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18, opset23
from torch import fx

import normswap.lowering.kernels  # noqa: F401  registers the operators
from normswap.errors import NormswapError
from normswap.lowering.kernels.signatures import NORMS

Translations = dict[Callable[..., Any], Callable[..., Any]]


def translations(opset: int) -> Translations:
    """How to write each functional operator at an ONNX opset: LayerNormalization (17) or
    RMSNormalization (23, below it spelled out), with statistics in float32, Add and Mul.

    A half-precision sum is rounded before its norm, as two operators are bound to do. Raises
    NormswapError below 17.
    """
    if opset < 17:
        raise NormswapError(f"opset {opset} has no LayerNormalization; export at 17 or above")
    rms = _rms_norm if opset >= 23 else _spelled_rms_norm

    def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return _layer_norm(_given(x), weight, bias, eps, x.shape[-1])

    def rms_norm(x: Any, weight: Any, eps: float) -> Any:
        return rms(_given(x), weight, eps, x.shape[-1])

    def add_layer_norm(
        branch: Any, residual: Any, weight: Any, bias: Any, scale: Any, eps: float
    ) -> tuple[Any, Any]:
        total = _sum(_given(branch), _given(residual), scale)
        return _layer_norm(total, weight, bias, eps, branch.shape[-1]), total.value

    def add_rms_norm(
        branch: Any, residual: Any, weight: Any, scale: Any, eps: float
    ) -> tuple[Any, Any]:
        total = _sum(_given(branch), _given(residual), scale)
        return rms(total, weight, eps, branch.shape[-1]), total.value

    ops = torch.ops.normswap
    return {
        ops.layer_norm.default: layer_norm,
        ops.rms_norm.default: rms_norm,
        ops.add_layer_norm.default: add_layer_norm,
        ops.add_rms_norm.default: add_rms_norm,
    }


def functional(module: fx.GraphModule) -> fx.GraphModule:
    """A module on the same parameters without the operators in place, which ONNX cannot say: each
    becomes the functional one and ``copy_`` to its buffers, which the exporter resolves."""
    ops, copy = torch.ops.normswap, torch.ops.aten.copy_.default
    buffers = {
        getattr(ops, f"{name}_").default: (getattr(ops, name).default, len(norm.tensors))
        for name, norm in NORMS.items()
    }
    graph = fx.Graph(tracer_cls=getattr(module.graph, "_tracer_cls", None))
    graph.output(graph.graph_copy(module.graph, {}))
    graph.set_codegen(module.graph._codegen)
    for node in list(graph.nodes):
        if node.target not in buffers:
            continue
        operator, written = buffers[node.target]
        with graph.inserting_before(node):
            result = graph.call_function(operator, node.args, node.kwargs)
            parts = (
                [result]
                if written == 1
                else [graph.call_function(getitem, (result, i)) for i in range(written)]
            )
            for buffer, part in zip(_arguments(node)[:written], parts, strict=True):
                graph.call_function(copy, (buffer, part))
        graph.erase_node(node)
    return fx.GraphModule(module, graph).eval()


def _arguments(node: fx.Node) -> list[Any]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return [*node.args, *(node.kwargs[name] for name in names[len(node.args) :])]


@dataclass(frozen=True)
class _Typed:
    """A value and its dtype, which the exporter knows only of values between operators of torch."""

    value: Any
    dtype: ir.DataType

    def to(self, dtype: ir.DataType) -> Any:
        if dtype == self.dtype:
            return self.value
        return opset18.Cast(self.value, to=dtype.value)


def _given(value: Any) -> _Typed:
    return _Typed(value, value.dtype)


def _layer_norm(x: _Typed, weight: Any, bias: Any, eps: float, columns: int) -> Any:
    dtype = _common(x, weight, bias)
    scale = _ones(columns, dtype) if weight is None else _given(weight).to(dtype)
    shift = None if bias is None else _given(bias).to(dtype)
    y, *_ = opset18.LayerNormalization(x.to(dtype), scale, shift, axis=-1, epsilon=eps)
    return _Typed(y, dtype).to(x.dtype)


def _rms_norm(x: _Typed, weight: Any, eps: float, columns: int) -> Any:
    dtype = _common(x, weight)
    scale = _ones(columns, dtype) if weight is None else _given(weight).to(dtype)
    y = opset23.RMSNormalization(x.to(dtype), scale, axis=-1, epsilon=eps)
    return _Typed(y, dtype).to(x.dtype)


def _spelled_rms_norm(x: _Typed, weight: Any, eps: float, columns: int) -> Any:
    dtype = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    op, value = opset18, x.to(dtype)
    mean = op.ReduceMean(op.Mul(value, value), op.Constant(value_ints=[-1]), keepdims=1)
    epsilon = op.Constant(value=ir.tensor(eps, dtype=dtype))
    y = op.Div(value, op.Sqrt(op.Add(mean, epsilon)))
    scaled = y if weight is None else op.Mul(y, _given(weight).to(dtype))
    return _Typed(scaled, dtype).to(x.dtype)


def _sum(branch: _Typed, residual: _Typed, scale: Any) -> _Typed:
    result, dtype = _common(branch, residual), _common(branch, residual, scale)
    added = branch.to(dtype)
    if scale is not None:
        added = opset18.Mul(added, _given(scale).to(dtype))
    total = _Typed(opset18.Add(residual.to(dtype), added), dtype)
    return _Typed(total.to(result), result)


def _common(*values: Any) -> ir.DataType:
    """The one dtype that the values have, or the widest, which two half types need too."""
    dtypes = {value.dtype for value in values if value is not None}
    if len(dtypes) == 1:
        return dtypes.pop()
    return ir.DataType.DOUBLE if ir.DataType.DOUBLE in dtypes else ir.DataType.FLOAT


def _ones(columns: int, dtype: ir.DataType) -> Any:
    return opset18.Constant(value=ir.tensor([1.0] * columns, dtype=dtype))
