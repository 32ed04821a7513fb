"""Operators for onnx's reference evaluator, where its own are slow or wrong.

Each keeps the operator's semantics in the dtype of its input. Most compute with torch, which is
imported when the first of them runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from onnx.reference.op_run import OpRun

from normswap.graph.graph import Array

if TYPE_CHECKING:
    import torch

_COERCED_BEFORE = 13  # the opset from which on Softmax works along one axis


def float64_ops(op_types: Iterable[str]) -> list[type[OpRun]]:
    """The implementations here of those operators among ``op_types`` that have one."""
    return [_OPS[op_type] for op_type in sorted(set(op_types) & set(_OPS))]


def _tensor(array: Array) -> torch.Tensor:
    from normswap.graph.tensors import to_torch  # proofs of few operators need no torch

    return to_torch(array)


class _Op(OpRun):
    op_domain: ClassVar[str] = ""


class LayerNormalization(_Op):
    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int | None = None,
    ) -> tuple[Array, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdims=True)
        inverse = 1 / np.sqrt(np.square(x - mean).mean(axes, keepdims=True) + epsilon)
        y = (x - mean) * inverse * w
        outputs = (y if b is None else y + b, mean, inverse)
        return outputs[: len([o for o in self.onnx_node.output if o])]


class Unsqueeze(_Op):
    def _run(self, x: Array, axes: Any = None) -> tuple[Array]:  # the evaluator's mixes up several
        return (np.expand_dims(x, tuple(int(axis) for axis in np.ravel(axes))),)


class Erf(_Op):
    def _run(self, x: Array) -> tuple[Array]:  # the evaluator's own rounds to float32
        return (_tensor(x).erf().numpy(),)


class Gelu(_Op):
    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        from torch.nn.functional import gelu

        return (gelu(_tensor(x), approximate=approximate).numpy(),)


class Softmax(_Op):
    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        axis = -1 if axis is None else axis
        if self.run_params["opsets"][""] < _COERCED_BEFORE:  # coerced to two dimensions
            rows = int(np.prod(x.shape[: axis % x.ndim]))
            return (_tensor(x).reshape(rows, -1).softmax(1).numpy().reshape(x.shape),)
        return (_tensor(x).softmax(axis).numpy(),)


class MatMul(_Op):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return ((_tensor(a) @ _tensor(b)).numpy(),)


class Gemm(_Op):
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
        left, right = _tensor(a.T if transA else a), _tensor(b.T if transB else b)
        product = (1.0 if alpha is None else alpha) * (left @ right)
        if c is not None:
            product = product + (1.0 if beta is None else beta) * _tensor(c)
        return (product.numpy(),)


class Conv(_Op):
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
        import torch

        if (auto_pad or "NOTSET") not in ("NOTSET", "VALID"):
            raise NotImplementedError(f"Conv with auto_pad={auto_pad}")
        rank = x.ndim - 2
        pads = list(pads or [0] * 2 * rank)
        flat = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        padded = torch.nn.functional.pad(_tensor(x), flat)
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        bias = None if b is None else _tensor(b)
        strides, dilations = tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
        return (convolve(padded, _tensor(w), bias, strides, 0, dilations, group or 1).numpy(),)


_OPS: dict[str, type[OpRun]] = {
    op.__name__: op
    for op in (LayerNormalization, Unsqueeze, Erf, Gelu, Softmax, MatMul, Gemm, Conv)
}
