"""The operators on CUDA tensors: Triton where it is installed and fits, else torch's own operators.

Triton is imported when the first CUDA tensor arrives.
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType

import torch
from torch import Tensor

from normswap.lowering.kernels.backend import Backend
from normswap.lowering.kernels.library import wanted

_LOG = logging.getLogger("normswap")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _triton() -> ModuleType | None:
    if not wanted():
        return None
    try:
        from normswap.lowering.kernels import triton_launch
    except ImportError as error:
        _LOG.warning(
            "triton cannot be imported (%s); norms run in torch's own operators, which is slower",
            " ".join(str(error).split()),
        )
        return None
    return triton_launch


def norm(
    centred: int, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> bool:
    """Whether Triton wrote ``y``."""
    triton = _triton()
    if triton is None or not _fits(x, weight, bias):
        return False
    triton.norm(centred, x, y, weight, bias, eps)
    return True


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
) -> bool:
    """Whether Triton wrote ``y`` and ``total``."""
    triton = _triton()
    if (
        triton is None
        or not _fits(branch, weight, bias, scale)
        or residual.dtype is not branch.dtype
        or residual.shape != branch.shape
        or residual.device != branch.device
    ):
        return False
    triton.add_norm(centred, branch, residual, y, total, weight, bias, scale, eps)
    return True


def backward(
    centred: int,
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    eps: float,
) -> Tensor | None:
    """The gradient of ``x``, with the other two written; None where Triton does not fit."""
    triton = _triton()
    gradients = (grad,) if grad_sum is None else (grad, grad_sum)
    if (
        triton is None
        or not _fits(x, weight)
        or any(g.dtype is not x.dtype or g.shape != x.shape for g in gradients)
    ):
        return None
    source, grad = x.contiguous(), grad.contiguous()
    grad_sum = None if grad_sum is None else grad_sum.contiguous()
    grad_x = torch.empty_like(source)
    triton.backward(centred, grad, grad_sum, source, grad_x, weight, grad_weight, grad_bias, eps)
    return grad_x


def _fits(x: Tensor, *parameters: Tensor | None) -> bool:
    return (
        x.dtype in _DTYPES
        and bool(x.numel())
        and bool(x.dim())
        and all(
            p is None
            or (
                p.dtype in (x.dtype, torch.float32)
                and p.shape == x.shape[-1:]
                and p.is_contiguous()
                and p.device == x.device
            )
            for p in parameters
        )
    )


BACKEND = Backend(norm, add_norm, backward)
