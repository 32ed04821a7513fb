"""The norms in torch's own operators: for any device and float dtype, differentiable.

They define what the kernels compute. Half precision is computed in float32, and the norm of a sum
is that of the sum before it is rounded to the tensors' dtype.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from normswap.lowering.kernels.arguments import check_add_norm, check_buffers, check_norm


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last axis; x's shape and dtype."""
    check_norm("layer_norm", x, weight=weight, bias=bias)
    return _layer_norm(x, weight, bias, eps).to(x.dtype).contiguous()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(E[x²] + eps) * weight over the last axis; x's shape and dtype."""
    check_norm("rms_norm", x, weight=weight)
    return _rms_norm(x, weight, eps).to(x.dtype).contiguous()


def layer_norm_(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    x.copy_(layer_norm(x, weight, bias, eps))


def rms_norm_(x: Tensor, weight: Tensor | None, eps: float) -> None:
    x.copy_(rms_norm(x, weight, eps))


def add_layer_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The norm of residual + scale * branch, and that sum, in the wider dtype of the two."""
    check_add_norm("add_layer_norm", branch, residual, weight=weight, bias=bias, scale=scale)
    dtype = torch.promote_types(branch.dtype, residual.dtype)
    total = _sum(branch, residual, scale)
    y = _layer_norm(total, weight, bias, eps)
    return y.to(dtype).contiguous(), total.to(dtype).contiguous()


def add_rms_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The norm of residual + scale * branch, and that sum, in the wider dtype of the two."""
    check_add_norm("add_rms_norm", branch, residual, weight=weight, scale=scale)
    dtype = torch.promote_types(branch.dtype, residual.dtype)
    total = _sum(branch, residual, scale)
    y = _rms_norm(total, weight, eps)
    return y.to(dtype).contiguous(), total.to(dtype).contiguous()


def add_layer_norm_(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    check_buffers("add_layer_norm_", branch, residual)
    y, total = add_layer_norm(branch, residual, weight, bias, scale, eps)
    branch.copy_(y)
    residual.copy_(total)


def add_rms_norm_(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    check_buffers("add_rms_norm_", branch, residual)
    y, total = add_rms_norm(branch, residual, weight, scale, eps)
    branch.copy_(y)
    residual.copy_(total)


def layer_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (its dtype), weight and bias ([C], at least float32).

    With h = (x - E[x]) / sqrt(Var[x] + eps) and g = grad * weight:
    (g - E[g] - h E[g h]) / sqrt(Var[x] + eps) + grad_sum, and the sums of grad * h and grad over
    the rows (Ba, Kiros, Hinton 2016, by the chain rule).
    """
    dtype = _working_dtype(grad, weight, x)
    wide, grad_wide, weight = x.to(dtype), grad.to(dtype), _cast(weight, dtype)
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    h = centred * rstd
    g = grad_wide if weight is None else grad_wide * weight
    grad_x = rstd * (g - g.mean(-1, keepdim=True) - h * (g * h).mean(-1, keepdim=True))
    return _plus(grad_x, grad_sum, x.dtype), sum_rows(grad_wide * h), sum_rows(grad_wide)


def rms_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x (its dtype) and weight ([C], at least float32): those of ``layer_norm``
    without the means."""
    dtype = _working_dtype(grad, weight, x)
    wide, grad_wide, weight = x.to(dtype), grad.to(dtype), _cast(weight, dtype)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    h = wide * rstd
    g = grad_wide if weight is None else grad_wide * weight
    grad_x = rstd * (g - h * (g * h).mean(-1, keepdim=True))
    return _plus(grad_x, grad_sum, x.dtype), sum_rows(grad_wide * h)


def sum_rows(x: Tensor) -> Tensor:
    """The sum over all axes but the last, [C]."""
    return x.sum(tuple(range(x.dim() - 1)))


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    dtype = _working_dtype(x, weight, bias)
    wide, weight, bias = x.to(dtype), _cast(weight, dtype), _cast(bias, dtype)
    return functional.layer_norm(wide, wide.shape[-1:], weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    dtype = _working_dtype(x, weight)
    wide, weight = x.to(dtype), _cast(weight, dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def _sum(branch: Tensor, residual: Tensor, scale: Tensor | None) -> Tensor:
    dtype = _working_dtype(branch, residual, scale)
    added = branch.to(dtype) if scale is None else branch.to(dtype) * scale.to(dtype)
    return residual.to(dtype) + added


def _plus(grad_x: Tensor, grad_sum: Tensor | None, dtype: torch.dtype) -> Tensor:
    total = grad_x if grad_sum is None else grad_x + grad_sum.to(grad_x.dtype)
    return total.to(dtype).contiguous()


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest of the tensors' dtypes, and at least float32."""
    given = [t.dtype for t in tensors if t is not None]
    return functools.reduce(torch.promote_types, given, torch.float32)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
