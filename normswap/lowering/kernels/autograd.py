"""Gradients of the operators that are not in place.

Nothing but the inputs of a norm is saved, for a sum its value: the backward kernels take the
statistics again while they have a row at hand. A second derivative goes through torch's own
operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normswap.lowering.kernels import eager
from normswap.lowering.kernels.operators import LIBRARY

Gradients = tuple[Tensor | None, ...]


def register() -> None:
    """Tells torch the gradients of the four functional operators."""
    for name, backward, save in (
        ("layer_norm", _layer_norm, _save_layer_norm),
        ("rms_norm", _rms_norm, _save_rms_norm),
        ("add_layer_norm", _add_layer_norm, _save_add_layer_norm),
        ("add_rms_norm", _add_rms_norm, _save_add_rms_norm),
    ):
        torch.library.register_autograd(
            f"normswap::{name}", backward, setup_context=save, lib=LIBRARY
        )


def _save_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias)


def _layer_norm(ctx: Any, grad: Tensor) -> Gradients:
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _layer_norm_backward(grad, None, x, weight, ctx.eps)
    return grad_x, _like(grad_weight, weight), _like(grad_bias, bias), None


def _save_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm(ctx: Any, grad: Tensor) -> Gradients:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = _rms_norm_backward(grad, None, x, weight, ctx.eps)
    return grad_x, _like(grad_weight, weight), None


def _save_add_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    branch, residual, weight, bias, scale, ctx.eps = inputs
    ctx.dtypes = branch.dtype, residual.dtype
    ctx.set_materialize_grads(False)
    scaled = None if scale is None else branch
    ctx.save_for_backward(output[1], weight, bias, scale, scaled)


def _add_layer_norm(ctx: Any, grad: Tensor | None, grad_sum: Tensor | None) -> Gradients:
    total, weight, bias, scale, branch = ctx.saved_tensors
    grad_weight = grad_bias = None
    if grad is not None:
        grad_sum, grad_weight, grad_bias = _layer_norm_backward(
            grad, grad_sum, total, weight, ctx.eps
        )
    grad_branch, grad_residual, grad_scale = _through_sum(ctx, grad_sum, branch, scale)
    parameters = _like(grad_weight, weight), _like(grad_bias, bias), grad_scale
    return grad_branch, grad_residual, *parameters, None


def _save_add_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    branch, residual, weight, scale, ctx.eps = inputs
    ctx.dtypes = branch.dtype, residual.dtype
    ctx.set_materialize_grads(False)
    scaled = None if scale is None else branch
    ctx.save_for_backward(output[1], weight, scale, scaled)


def _add_rms_norm(ctx: Any, grad: Tensor | None, grad_sum: Tensor | None) -> Gradients:
    total, weight, scale, branch = ctx.saved_tensors
    grad_weight = None
    if grad is not None:
        grad_sum, grad_weight = _rms_norm_backward(grad, grad_sum, total, weight, ctx.eps)
    grad_branch, grad_residual, grad_scale = _through_sum(ctx, grad_sum, branch, scale)
    return grad_branch, grad_residual, _like(grad_weight, weight), grad_scale, None


def _layer_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled():  # create_graph: someone differentiates this again
        return eager.layer_norm_backward(grad, grad_sum, x, weight, eps)
    return torch.ops.normswap.layer_norm_backward.default(grad, grad_sum, x, weight, eps)


def _rms_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled():
        return eager.rms_norm_backward(grad, grad_sum, x, weight, eps)
    return torch.ops.normswap.rms_norm_backward.default(grad, grad_sum, x, weight, eps)


def _through_sum(
    ctx: Any, grad: Tensor | None, branch: Tensor | None, scale: Tensor | None
) -> Gradients:
    """Gradients of branch, residual and scale, of residual + scale * branch."""
    if grad is None:
        return None, None, None
    dtype, residual_dtype = ctx.dtypes
    if scale is None or branch is None:
        return grad.to(dtype), grad.to(residual_dtype), None
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad_scale = eager.sum_rows(grad.to(wide) * branch.to(wide))
    return (grad * scale).to(dtype), grad.to(residual_dtype), grad_scale.to(scale.dtype)


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    if grad is None or parameter is None:
        return None
    # At batch 1 a call that does nothing shows.
    return grad if grad.dtype is parameter.dtype else grad.to(parameter.dtype)
