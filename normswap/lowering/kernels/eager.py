"""The norms in torch's own operators: for any device and float dtype, differentiable.

They define what the kernels compute. Half precision is computed in float32, and the norm of a sum
is that of the sum before it is rounded to the tensors' dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from normswap.lowering.kernels.signatures import Norm, check, check_buffers


def forward(norm: Norm, *given: Any) -> Any:
    """y, or y and the sum, of the operator called with ``given``: contiguous, in the tensors'
    dtype, for a sum the wider of the two.

    LayerNorm: (x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last axis; RMSNorm:
    x / sqrt(E[x²] + eps) * weight. x of a sum is residual + scale * branch. Raises RuntimeError.
    """
    arguments = norm.arguments(given)
    check(norm.name, arguments)
    tensors, weight, bias, scale, eps = arguments
    dtype = result_dtype(tensors)
    x = _sum(tensors, scale) if norm.with_sum else tensors[0]
    y = _layer_norm(x, weight, bias, eps) if norm.centred else _rms_norm(x, weight, eps)
    y = y.to(dtype).contiguous()
    return (y, x.to(dtype).contiguous()) if norm.with_sum else y


def forward_in_place(norm: Norm, *given: Any) -> None:
    """The same into the memory of the tensors, y into the first and the sum into the second."""
    write_back(norm, functools.partial(forward, norm), given)


def write_back(norm: Norm, compute: Callable[..., Any], given: Sequence[Any]) -> None:
    """Calls ``compute`` and puts its results into the memory of the tensors among ``given``."""
    if norm.with_sum:
        check_buffers(f"{norm.name}_", *given[:2])
    results = compute(*given)
    for buffer, result in zip(given, results if norm.with_sum else (results,), strict=False):
        buffer.copy_(result)


def backward(
    norm: Norm, grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    """Gradients of x (its dtype), weight and, for LayerNorm, bias ([C], at least float32).

    With h = (x - E[x]) / sqrt(Var[x] + eps) and g = grad * weight:
    (g - E[g] - h E[g h]) / sqrt(Var[x] + eps) + grad_sum, and the sums of grad * h and grad over
    the rows (Ba, Kiros, Hinton 2016, by the chain rule). RMSNorm: without the means of x and g.
    """
    dtype = _working_dtype(grad, weight, x)
    wide, grad_wide, weight = x.to(dtype), grad.to(dtype), _cast(weight, dtype)
    rest = wide - wide.mean(-1, keepdim=True) if norm.centred else wide
    rstd = torch.rsqrt(rest.square().mean(-1, keepdim=True) + eps)
    h = rest * rstd
    g = grad_wide if weight is None else grad_wide * weight
    g_rest = g - g.mean(-1, keepdim=True) if norm.centred else g
    grad_x = rstd * (g_rest - h * (g * h).mean(-1, keepdim=True))
    if grad_sum is not None:
        grad_x = grad_x + grad_sum.to(dtype)
    sums = [sum_rows(grad_wide * h), *([sum_rows(grad_wide)] if norm.centred else [])]
    return grad_x.to(x.dtype).contiguous(), *sums


def sum_rows(x: Tensor) -> Tensor:
    """The sum over all axes but the last, [C]."""
    return x.sum(tuple(range(x.dim() - 1)))


def result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The widest dtype of the tensors (autocast adds half branches to a float32 stream)."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    dtype = _working_dtype(x, weight, bias)
    wide, weight, bias = x.to(dtype), _cast(weight, dtype), _cast(bias, dtype)
    return functional.layer_norm(wide, wide.shape[-1:], weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    dtype = _working_dtype(x, weight)
    wide, weight = x.to(dtype), _cast(weight, dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def _sum(tensors: Sequence[Tensor], scale: Tensor | None) -> Tensor:
    branch, residual = tensors
    dtype = _working_dtype(branch, residual, scale)
    added = branch.to(dtype) if scale is None else branch.to(dtype) * scale.to(dtype)
    return residual.to(dtype) + added


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest of the tensors' dtypes, and at least float32."""
    given = [t.dtype for t in tensors if t is not None]
    return functools.reduce(torch.promote_types, given, torch.float32)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
