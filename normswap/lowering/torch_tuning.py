"""Which of this project's kernels are faster on this machine than torch's own operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

import normswap.lowering.kernels  # noqa: F401  (registers the operators)
from normswap.graph.fx.graph import FxGraph
from normswap.graph.graph import Node
from normswap.graph.tensors import to_torch
from normswap.lowering.measure import Measured, choose, described, key_of, recalled
from normswap.lowering.torch_kernels import allow_kernels, running_kernels
from normswap.model import Progress
from normswap.timing.paired import compare

ORIGINAL = "torch's operators"
_ROUNDS = 48
_EPSILON = 1e-6
Shape = tuple[int, ...]


def tune_kernels(graph: FxGraph, progress: Progress | None) -> list[str]:
    """Takes away from every norm the kernels that do not win, until those left have won."""
    notes: dict[str, None] = {}
    lost: dict[Node, set[str]] = {}
    settled: set[tuple[Node, str]] = set()
    while todo := [(n, k) for n, k in running_kernels(graph).items() if (n, k) not in settled]:
        for number, (node, kernel) in enumerate(todo):
            if progress:
                progress(number, len(todo), "measuring")
            settled.add((node, kernel))
            shape, dtype = node.output.shape or (), node.output.dtype
            measured = measure_kernel(kernel, shape, to_torch(np.empty(0, dtype)).dtype)
            taken = choose(measured, kernel)
            size = "x".join(str(s) for s in shape)
            notes[f"norms of {size} {dtype}: {taken}; {described(measured, ORIGINAL)}"] = None
            if taken != kernel:
                lost.setdefault(node, set()).add(kernel)
                allow_kernels(graph, [node], besides=lost[node])
        if progress:
            progress(len(todo), len(todo), "measuring")
    return list(notes)


def measure_kernel(kernel: str, shape: Shape, dtype: torch.dtype) -> dict[str, Measured]:
    """``kernel`` (of ``torch_kernels.KERNELS``) beside the operators of torch that it
    replaces, on tensors of ``shape``. Recalled where this machine has measured the same."""
    parts = (f"torch {torch.__version__}", str(torch.get_num_threads()), kernel)
    key = key_of(*parts, str(shape), str(dtype))
    return recalled(key, (ORIGINAL, kernel), lambda: _measured(kernel, shape, dtype))


def _measured(kernel: str, shape: Shape, dtype: torch.dtype) -> dict[str, Measured]:
    random = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape[-1], generator=random).to(dtype) for _ in range(2))
    with_sum, is_layer_norm = kernel.startswith("add_"), "layer" in kernel
    operator = getattr(torch.ops.normswap, kernel).default
    parameters = (weight, bias) if is_layer_norm else (weight,)
    if with_sum:
        parameters = (*parameters, None)  # LayerScale

    def original(*values: torch.Tensor) -> list[torch.Tensor]:
        total = values[0] + values[1] if with_sum else values[0]
        if is_layer_norm:
            normed = functional.layer_norm(
                total, shape[-1:], weight.to(total), bias.to(total), _EPSILON
            )
        else:
            normed = functional.rms_norm(total, shape[-1:], weight.to(total), _EPSILON)
        return [normed, total][: len(values)]

    def fused(*values: torch.Tensor) -> list[torch.Tensor]:
        result = operator(*values, *parameters, _EPSILON)
        return list(values) if result is None else [result]

    shares = [0.0]
    with torch.inference_mode():
        for shift, scale in ((0.0, 1.0), (1e4, 1.0), (0.0, 1e-4)):
            drawn = [
                torch.randn(shape, generator=random) * scale + shift for _ in range(1 + with_sum)
            ]
            values = [v.to(dtype) for v in drawn]
            exact = original(*(v.double() for v in values))
            allowed = _errors(original(*values), exact)
            found = _errors(fused(*(v.clone() for v in values)), exact)
            slack = float(torch.finfo(dtype).eps)
            shares += [f / (2 * a + slack) for f, a in zip(found, allowed, strict=True)]
        values = [torch.randn(shape, generator=random).to(dtype) for _ in range(1 + with_sum)]
        runs: dict[str, Callable[[], object]] = {
            ORIGINAL: lambda: original(*values),
            kernel: lambda: fused(*values),
        }
        times = compare(runs, ORIGINAL, _ROUNDS)
    t = times[kernel]
    worst = float(np.nan_to_num(max(shares), nan=np.inf))
    return {
        ORIGINAL: Measured(1.0, 1.0, 1.0, 0.5),
        kernel: Measured(t.ratio, t.low, t.high, worst),
    }


def _errors(got: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    """The largest error of each output as a share of its scale."""
    return [
        float((g.double() - e).abs().max() / e.abs().max().clamp_min(1e-300))
        for g, e in zip(got, exact, strict=True)
    ]
