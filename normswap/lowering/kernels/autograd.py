"""Gradients of the operators that are not in place.

Nothing but the inputs of a norm is saved, for a sum its value: the backward kernels take the
statistics again while they have a row at hand. A second derivative goes through torch's own
operators.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from normswap.lowering.kernels import eager
from normswap.lowering.kernels.operators import LIBRARY
from normswap.lowering.kernels.signatures import NORMS, Norm


def register() -> None:
    """Tells torch the gradients of the functional operators."""
    for norm in NORMS.values():
        torch.library.register_autograd(
            f"normswap::{norm.name}",
            partial(_gradients, norm, _backward_of(norm)),
            setup_context=partial(_save, norm),
            lib=LIBRARY,
        )


def _backward_of(norm: Norm) -> Any:
    """The operator that computes the gradients of a norm over one tensor."""
    name = "layer_norm_backward" if norm.centred else "rms_norm_backward"
    return getattr(torch.ops.normswap, name).default


def _save(norm: Norm, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, weight, bias, scale, ctx.eps = norm.arguments(inputs)
    if not norm.with_sum:
        ctx.save_for_backward(*tensors, weight, bias)
        return
    branch, residual = tensors
    ctx.dtypes = branch.dtype, residual.dtype
    ctx.set_materialize_grads(False)
    scaled = None if scale is None else branch
    ctx.save_for_backward(output[1], weight, bias, scale, scaled)


def _gradients(
    norm: Norm, backward: Any, ctx: Any, grad: Tensor | None, grad_sum: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """The gradients of the operator's arguments, in order."""
    x, weight, bias, *scaled = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = grad_sum, None, None
    if grad is not None:
        if torch.is_grad_enabled():  # create_graph: someone differentiates this again
            grad_x, grad_weight, *rest = eager.backward(norm, grad, grad_sum, x, weight, ctx.eps)
        else:
            grad_x, grad_weight, *rest = backward(grad, grad_sum, x, weight, ctx.eps)
        grad_bias = rest[0] if rest else None
    parameters = [_like(grad_weight, weight)]
    if norm.centred:
        parameters.append(_like(grad_bias, bias))
    if not norm.with_sum:
        return grad_x, *parameters, None
    grad_branch, grad_residual, grad_scale = _through_sum(ctx.dtypes, grad_x, *scaled)
    return grad_branch, grad_residual, *parameters, grad_scale, None


def _through_sum(
    dtypes: tuple[torch.dtype, torch.dtype],
    grad: Tensor | None,
    scale: Tensor | None,
    branch: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of branch, residual and scale, of residual + scale * branch."""
    if grad is None:
        return None, None, None
    dtype, residual_dtype = dtypes
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
