"""Running the Triton kernels: how many rows a program takes, and with how many warps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # type: ignore  # untyped, or not installed
from torch import Tensor

from normswap.lowering.kernels.triton_kernels import backward as backward_kernel
from normswap.lowering.kernels.triton_kernels import backward_long, forward_long
from normswap.lowering.kernels.triton_kernels import forward as forward_kernel

LONGEST_FORWARD = 1 << 16
"""Bytes of a row that a forward program holds in registers."""
LONGEST_BACKWARD = 1 << 15
"""The same of a backward program, which holds the row, its gradient and two sums."""
_BLOCK = 4096
_TILE = 2048
"""Numbers that a program takes at once, where rows are shorter."""


def forward(
    centred: bool,
    tensors: Sequence[Tensor],
    results: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    """Writes to ``results`` the norm of a tensor; or that of residual + scale * branch, and the
    sum. The results may be the tensors; all are contiguous."""
    branch, residual = (*tensors, None)[:2]
    y, total = (*results, None)[:2]
    assert branch is not None
    columns = branch.shape[-1]
    rows = branch.numel() // columns
    padded = triton.next_power_of_2(columns)
    arguments = (branch, residual, y, total, weight, bias, scale, rows, columns, eps)
    present = (weight is not None, bias is not None, scale is not None)
    flags = (residual is not None, centred, *present)
    with torch.cuda.device_of(branch):
        if padded * branch.itemsize > LONGEST_FORWARD:
            forward_long[(rows,)](*arguments, *flags, _BLOCK, num_warps=8)
        else:
            at_once = max(1, min(16, _TILE // padded))
            forward_kernel[(triton.cdiv(rows, at_once),)](
                *arguments, *flags, at_once, padded, num_warps=_warps(at_once * padded)
            )


def backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    grad_x: Tensor,
    weight: Tensor | None,
    sums: Sequence[Tensor],
    eps: float,
) -> None:
    """Writes the gradients of x and, into ``sums`` (float32 [C]), of the weight and, for LayerNorm
    only, the bias; all are contiguous."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    padded = triton.next_power_of_2(columns)
    long = padded * x.itemsize > LONGEST_BACKWARD
    at_once = 1 if long else max(1, min(4, _TILE // padded))
    each = triton.cdiv(triton.cdiv(rows, _programs(x)), at_once) * at_once
    programs = triton.cdiv(rows, each)
    partial = x.new_zeros((len(sums), programs, columns), dtype=torch.float32)
    arguments = (grad, grad_sum, x, grad_x, weight, partial[0], partial[-1], rows, columns, each)
    flags = (len(sums) == 2, weight is not None, grad_sum is not None)
    with torch.cuda.device_of(x):
        if long:
            backward_long[(programs,)](*arguments, eps, *flags, _BLOCK, num_warps=8)
        else:
            backward_kernel[(programs,)](
                *arguments, eps, *flags, at_once, padded, num_warps=_warps(at_once * padded)
            )
    for partial_sums, result in zip(partial, sums, strict=True):
        torch.sum(partial_sums, 0, out=result)


def _warps(numbers: int) -> int:
    return max(1, min(16, numbers // 512))


def _programs(x: Tensor) -> int:
    """Enough for every multiprocessor to hide its loads behind another program's work."""
    if not x.is_cuda:  # Triton's interpreter
        return 4
    return 4 * torch.cuda.get_device_properties(x.device).multi_processor_count
