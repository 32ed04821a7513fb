"""Operators for onnx's reference evaluator, by torch.

The evaluator's own are exact but slow, and Erf is float32 inside. Each keeps the operator's
semantics in the dtype of its input.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from onnx.reference.op_run import OpRun

from normswap.graph.graph import Array
from normswap.graph.tensors import to_torch


class _TorchOp(OpRun):
    op_domain: ClassVar[str] = ""


class Erf(_TorchOp):
    def _run(self, x: Array) -> tuple[Array]:  # the evaluator's own rounds to float32
        return (torch.erf(to_torch(x)).numpy(),)


class Gelu(_TorchOp):
    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        return (torch.nn.functional.gelu(to_torch(x), approximate=approximate).numpy(),)


class Softmax(_TorchOp):
    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        axis = -1 if axis is None else axis
        if self.run_params["opsets"][""] < 13:  # coerced to two dimensions before opset 13
            rows = int(np.prod(x.shape[: axis % x.ndim]))
            return (torch.softmax(to_torch(x).reshape(rows, -1), 1).numpy().reshape(x.shape),)
        return (torch.softmax(to_torch(x), axis).numpy(),)


class MatMul(_TorchOp):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return (torch.matmul(to_torch(a), to_torch(b)).numpy(),)


class Gemm(_TorchOp):
    def _run(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        transA: int | None = None,  # noqa: N803 - ONNX's name
        transB: int | None = None,  # noqa: N803
    ) -> tuple[Array]:
        left, right = to_torch(a.T if transA else a), to_torch(b.T if transB else b)
        product = (1.0 if alpha is None else alpha) * (left @ right)
        if c is not None:
            product = product + (1.0 if beta is None else beta) * to_torch(c)
        return (product.numpy(),)


class Conv(_TorchOp):
    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        if (auto_pad or "NOTSET") not in ("NOTSET", "VALID"):
            raise NotImplementedError(f"Conv with auto_pad={auto_pad}")
        rank = x.ndim - 2
        pads = list(pads or [0] * 2 * rank)
        flat = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        padded = torch.nn.functional.pad(to_torch(x), flat)
        function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        bias = None if b is None else to_torch(b)
        result = function(
            padded,
            to_torch(w),
            bias,
            tuple(strides or [1] * rank),
            0,
            tuple(dilations or [1] * rank),
            group or 1,
        )
        return (result.numpy(),)


OPS: list[type[OpRun]] = [Conv, Erf, Gelu, Gemm, MatMul, Softmax]
