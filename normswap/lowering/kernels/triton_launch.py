"""Running the Triton kernels: how many rows a program takes, and with how many warps."""

from __future__ import annotations

import torch
import triton  # type: ignore  # untyped, or not installed
from torch import Tensor

from normswap.lowering.kernels.triton_backward import backward as backward_kernel
from normswap.lowering.kernels.triton_backward import backward_long
from normswap.lowering.kernels.triton_forward import forward, forward_long

LONGEST_FORWARD = 1 << 16
"""Bytes of a row that a forward program holds in registers."""
LONGEST_BACKWARD = 1 << 15
"""The same of a backward program, which holds the row, its gradient and two sums."""
_BLOCK = 4096
_TILE = 2048
"""Numbers that a program takes at once, where rows are shorter."""


def norm(
    centred: int, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    """Writes the norm of contiguous ``x`` to ``y``, which may be ``x``."""
    _forward(centred, x, None, y, None, weight, bias, None, eps)


def add_norm(
    centred: int,
    branch: Tensor,
    residual: Tensor,
    y: Tensor,
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    """Writes the norm of residual + scale * branch to ``y``, which may be the branch, and the sum
    to ``total``, which may be the residual; all contiguous."""
    _forward(centred, branch, residual, y, total, weight, bias, scale, eps)


def _forward(
    centred: int,
    branch: Tensor,
    residual: Tensor | None,
    y: Tensor,
    total: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    columns = branch.shape[-1]
    rows = branch.numel() // columns
    padded = triton.next_power_of_2(columns)
    arguments = (branch, residual, y, total, weight, bias, scale, rows, columns, eps)
    present = (weight is not None, bias is not None, scale is not None)
    flags = (residual is not None, bool(centred), *present)
    with torch.cuda.device_of(branch):
        if padded * branch.itemsize > LONGEST_FORWARD:
            forward_long[(rows,)](*arguments, *flags, _BLOCK, num_warps=8)
        else:
            at_once = max(1, min(16, _TILE // padded))
            forward[(triton.cdiv(rows, at_once),)](
                *arguments, *flags, at_once, padded, num_warps=_warps(at_once * padded)
            )


def backward(
    centred: int,
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    grad_x: Tensor,
    weight: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    eps: float,
) -> None:
    """Writes the three gradients; the tensors are contiguous, the last two float32 [C]."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    padded = triton.next_power_of_2(columns)
    long = padded * x.itemsize > LONGEST_BACKWARD
    at_once = 1 if long else max(1, min(4, _TILE // padded))
    each = triton.cdiv(triton.cdiv(rows, _programs(x)), at_once) * at_once
    programs = triton.cdiv(rows, each)
    partial = x.new_zeros((2 if centred else 1, programs, columns), dtype=torch.float32)
    arguments = (grad, grad_sum, x, grad_x, weight, partial[0], partial[-1], rows, columns, each)
    flags = (bool(centred), weight is not None, grad_sum is not None)
    with torch.cuda.device_of(x):
        if long:
            backward_long[(programs,)](*arguments, eps, *flags, _BLOCK, num_warps=8)
        else:
            backward_kernel[(programs,)](
                *arguments, eps, *flags, at_once, padded, num_warps=_warps(at_once * padded)
            )
    torch.sum(partial[0], 0, out=grad_weight)
    if grad_bias is not None:
        torch.sum(partial[1], 0, out=grad_bias)


def _warps(numbers: int) -> int:
    return max(1, min(16, numbers // 512))


def _programs(x: Tensor) -> int:
    """Enough for every multiprocessor to hide its loads behind another program's work."""
    if not x.is_cuda:  # Triton's interpreter
        return 4
    return 4 * torch.cuda.get_device_properties(x.device).multi_processor_count
