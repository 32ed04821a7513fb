"""The operators of one device, made of three kernels that may decline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normswap.lowering.kernels import eager
from normswap.lowering.kernels.arguments import check_buffers


@dataclass(frozen=True)
class Backend:
    """Each operator tries its kernel and falls back to torch's own operators.

    ``norm(centred, x, y, weight, bias, eps)`` writes y and returns whether it could, LayerNorm if
    ``centred`` is 1, RMSNorm if 0; ``add_norm(centred, branch, residual, y, sum, weight, bias,
    scale, eps)`` does so for a sum; their tensors are contiguous and the outputs may be the inputs.
    ``backward(centred, grad, grad_sum, x, weight, grad_weight, grad_bias, eps)`` returns the
    gradient of x and writes the other two (float32 [C]; no grad_bias for RMSNorm), or returns None.
    """

    norm: Callable[[int, Tensor, Tensor, Tensor | None, Tensor | None, float], bool]
    add_norm: Callable[..., bool]
    backward: Callable[..., Tensor | None]

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        source = x if x.is_contiguous() else x.contiguous()
        y = torch.empty_like(source)
        if self.norm(1, source, y, weight, bias, eps):
            return y
        return eager.layer_norm(x, weight, bias, eps)

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        source = x if x.is_contiguous() else x.contiguous()
        y = torch.empty_like(source)
        if self.norm(0, source, y, weight, None, eps):
            return y
        return eager.rms_norm(x, weight, eps)

    def layer_norm_(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        if not (x.is_contiguous() and self.norm(1, x, x, weight, bias, eps)):
            x.copy_(self.layer_norm(x, weight, bias, eps))

    def rms_norm_(self, x: Tensor, weight: Tensor | None, eps: float) -> None:
        if not (x.is_contiguous() and self.norm(0, x, x, weight, None, eps)):
            x.copy_(self.rms_norm(x, weight, eps))

    def add_layer_norm(
        self,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        a, b = _alike(branch, residual)
        y, total = torch.empty_like(a), torch.empty_like(a)
        if self.add_norm(1, a, b, y, total, weight, bias, scale, eps):
            return y, total
        return eager.add_layer_norm(branch, residual, weight, bias, scale, eps)

    def add_rms_norm(
        self,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        scale: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        a, b = _alike(branch, residual)
        y, total = torch.empty_like(a), torch.empty_like(a)
        if self.add_norm(0, a, b, y, total, weight, None, scale, eps):
            return y, total
        return eager.add_rms_norm(branch, residual, weight, scale, eps)

    def add_layer_norm_(
        self,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None,
        eps: float,
    ) -> None:
        check_buffers("add_layer_norm_", branch, residual)
        if not (
            branch.is_contiguous()
            and residual.is_contiguous()
            and self.add_norm(1, branch, residual, branch, residual, weight, bias, scale, eps)
        ):
            y, total = self.add_layer_norm(branch, residual, weight, bias, scale, eps)
            branch.copy_(y)
            residual.copy_(total)

    def add_rms_norm_(
        self,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        scale: Tensor | None,
        eps: float,
    ) -> None:
        check_buffers("add_rms_norm_", branch, residual)
        if not (
            branch.is_contiguous()
            and residual.is_contiguous()
            and self.add_norm(0, branch, residual, branch, residual, weight, None, scale, eps)
        ):
            y, total = self.add_rms_norm(branch, residual, weight, scale, eps)
            branch.copy_(y)
            residual.copy_(total)

    def layer_norm_backward(
        self, grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_weight, grad_bias = _new_sums(x), _new_sums(x)
        grad_x = self.backward(1, grad, grad_sum, x, weight, grad_weight, grad_bias, eps)
        if grad_x is None:
            return eager.layer_norm_backward(grad, grad_sum, x, weight, eps)
        return grad_x, grad_weight, grad_bias

    def rms_norm_backward(
        self, grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        grad_weight = _new_sums(x)
        grad_x = self.backward(0, grad, grad_sum, x, weight, grad_weight, None, eps)
        if grad_x is None:
            return eager.rms_norm_backward(grad, grad_sum, x, weight, eps)
        return grad_x, grad_weight


def _new_sums(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[-1:], dtype=torch.float32)


def _alike(branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous and of the wider dtype (autocast adds half branches to a float32 stream)."""
    if branch.dtype is not residual.dtype:
        dtype = torch.promote_types(branch.dtype, residual.dtype)
        branch, residual = branch.to(dtype), residual.to(dtype)
    if not branch.is_contiguous():  # cheaper to ask than contiguous()
        branch = branch.contiguous()
    if not residual.is_contiguous():
        residual = residual.contiguous()
    return branch, residual
