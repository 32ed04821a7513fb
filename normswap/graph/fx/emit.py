"""How the operators that passes insert are written as ATen calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from normswap.graph.graph import Value
from normswap.graph.tensors import to_torch

_ops = torch.ops.aten

# The arguments that are inputs, in ONNX's order.
CALL_SLOTS: dict[str, tuple[str, ...]] = {
    "LayerNormalization": ("input", "weight", "bias"),
    "RMSNormalization": ("input", "weight"),
    "Cast": ("self",),
    "Transpose": ("self",),
    "Add": ("self", "other"),
    "Sub": ("self", "other"),
    "Mul": ("self", "other"),
    "MatMul": ("self", "other"),
    "Gemm": ("mat1", "mat2", "self"),
    "ReduceMean": ("self",),
}


def call_for(
    op: str, nodes: Sequence[Any], inputs: Sequence[Value | None], attributes: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...]]:
    """The overload and its arguments, given the fx nodes (or None) of the inputs."""
    if op == "LayerNormalization":
        x = cast(Value, inputs[0])
        shape = list(cast(tuple[int, ...], x.shape)[attributes["axis"] :])
        weight, bias = (list(nodes[1:]) + [None, None])[:2]
        return _ops.layer_norm.default, (nodes[0], shape, weight, bias, attributes["epsilon"])
    if op == "RMSNormalization":
        x = cast(Value, inputs[0])
        shape = list(cast(tuple[int, ...], x.shape)[attributes["axis"] :])
        weight = nodes[1] if len(nodes) > 1 else None
        return _ops.rms_norm.default, (nodes[0], shape, weight, attributes["epsilon"])
    if op == "Cast":
        return _ops.to.dtype, (nodes[0], to_torch(np.empty(0, attributes["to"])).dtype)
    if op == "Transpose":
        return _ops.permute.default, (nodes[0], list(attributes["perm"]))
    if op == "ReduceMean":
        keep = bool(attributes["keepdims"])
        return _ops.mean.dim, (nodes[0], list(attributes["axes"]), keep)
    if op == "Gemm":
        return _ops.addmm.default, (nodes[2], nodes[0], nodes[1])
    return _BINARY[op], (nodes[0], nodes[1])


_BINARY = {
    "Add": _ops.add.Tensor,
    "Sub": _ops.sub.Tensor,
    "Mul": _ops.mul.Tensor,
    "MatMul": _ops.matmul.default,
}
