"""Shapes and dtypes of the operators' results, for fake tensors, and the checks of arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from normswap.lowering.kernels.arguments import check_add_norm, check_no_grad, check_norm


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    check_norm("layer_norm", x, weight=weight, bias=bias)
    return x.new_empty(x.shape)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    check_norm("rms_norm", x, weight=weight)
    return x.new_empty(x.shape)


def add_layer_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    check_add_norm("add_layer_norm", branch, residual, weight=weight, bias=bias, scale=scale)
    return _pair(branch, residual)


def add_rms_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    check_add_norm("add_rms_norm", branch, residual, weight=weight, scale=scale)
    return _pair(branch, residual)


def layer_norm_(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    check_no_grad("layer_norm_", x, weight, bias)
    check_norm("layer_norm_", x, weight=weight, bias=bias)


def rms_norm_(x: Tensor, weight: Tensor | None, eps: float) -> None:
    check_no_grad("rms_norm_", x, weight)
    check_norm("rms_norm_", x, weight=weight)


def add_layer_norm_(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    check_no_grad("add_layer_norm_", branch, residual, weight, bias, scale)
    check_add_norm("add_layer_norm_", branch, residual, weight=weight, bias=bias, scale=scale)


def add_rms_norm_(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    check_no_grad("add_rms_norm_", branch, residual, weight, scale)
    check_add_norm("add_rms_norm_", branch, residual, weight=weight, scale=scale)


def layer_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), _sums(x), _sums(x)


def rms_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _sums(x)


def _pair(branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(branch.dtype, residual.dtype)
    y = branch.new_empty(branch.shape, dtype=dtype)
    return y, torch.empty_like(y)


def _sums(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[-1:], dtype=torch.promote_types(x.dtype, torch.float32))
