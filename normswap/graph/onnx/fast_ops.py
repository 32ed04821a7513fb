"""Operators for onnx's reference evaluator, where its own are slow or wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from onnx.reference.op_run import OpRun

from normswap.graph.graph import Array

_BY_TORCH = ("Conv", "Erf", "Gelu", "Gemm", "MatMul", "Softmax")


def fast_ops(op_types: Iterable[str]) -> list[type[OpRun]]:
    """Those for ``op_types``; torch is imported only where it computes one of them."""
    wanted = set(op_types)
    ops = [op for op in (LayerNormalization, Unsqueeze) if op.__name__ in wanted]
    if not wanted.isdisjoint(_BY_TORCH):
        from normswap.graph.onnx.torch_ops import OPS

        ops += [op for op in OPS if op.__name__ in wanted]
    return ops


class LayerNormalization(OpRun):
    op_domain: ClassVar[str] = ""

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


class Unsqueeze(OpRun):
    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, axes: Any = None) -> tuple[Array]:  # the evaluator's mixes up several
        return (np.expand_dims(x, tuple(int(axis) for axis in np.ravel(axes))),)
