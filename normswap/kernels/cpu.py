"""The operators on CPU tensors: C where it fits, torch's own operators where not.

C takes contiguous float32, bfloat16 and float16, with parameters of the same dtype or float32.
These run for every norm of a model, so what can be told from pointers and sizes is not looked up
twice: at batch 1 a call's overhead is as large as its work.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from normswap.kernels.backend import Backend
from normswap.kernels.library import kernels

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PACK = struct.Struct("12Qd").pack
_NO_MEMORY = "normswap: not enough memory for a norm's rows; take a smaller batch"


def norm(
    centred: int, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> bool:
    """Whether C wrote ``y``; ``x`` and ``y`` are contiguous."""
    library, type_, count = kernels(), _TYPES.get(x.dtype), x.numel()
    if library is None or type_ is None or not count or not x.dim():
        return False
    columns = x.shape[-1]
    kinds = _kinds(x.dtype, columns, weight, bias, None)
    if kinds is None:
        return False
    call = _PACK(
        centred,
        x.data_ptr(),
        0,
        y.data_ptr(),
        0,
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0,
        count // columns,
        columns,
        type_,
        kinds,
        eps,
    )
    if library.normswap_forward(call):
        raise MemoryError(_NO_MEMORY)
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
    """Whether C wrote ``y`` and ``total``; the tensors are contiguous."""
    library, dtype, count = kernels(), branch.dtype, branch.numel()
    type_ = _TYPES.get(dtype)
    if (
        library is None
        or type_ is None
        or not count
        or not branch.dim()
        or residual.dtype is not dtype
        or residual.shape != branch.shape
    ):
        return False
    columns = branch.shape[-1]
    kinds = _kinds(dtype, columns, weight, bias, scale)
    if kinds is None:
        return False
    call = _PACK(
        centred,
        branch.data_ptr(),
        residual.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        count // columns,
        columns,
        type_,
        kinds,
        eps,
    )
    if library.normswap_forward(call):
        raise MemoryError(_NO_MEMORY)
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
    """The gradient of ``x``, with the other two written; None where C does not fit."""
    library, type_, count = kernels(), _TYPES.get(x.dtype), x.numel()
    gradients = (grad,) if grad_sum is None else (grad, grad_sum)
    if (
        library is None
        or type_ is None
        or not count
        or any(g.dtype is not x.dtype or g.shape != x.shape for g in gradients)
    ):
        return None
    columns = x.shape[-1]
    kinds = _kinds(x.dtype, columns, weight, None, None)
    if kinds is None:
        return None
    source, grad = x.contiguous(), grad.contiguous()
    grad_sum = None if grad_sum is None else grad_sum.contiguous()
    grad_x = torch.empty_like(source)
    call = _PACK(
        centred,
        grad.data_ptr(),
        0 if grad_sum is None else grad_sum.data_ptr(),
        source.data_ptr(),
        grad_x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        grad_weight.data_ptr(),
        0 if grad_bias is None else grad_bias.data_ptr(),
        count // columns,
        columns,
        type_,
        kinds,
        eps,
    )
    if library.normswap_backward(call):
        raise MemoryError(_NO_MEMORY)
    return grad_x


def _kinds(
    dtype: torch.dtype,
    columns: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
) -> int | None:
    """The parameters' types, two bits each, or None if C cannot read one of them."""
    kinds = 0
    for shift, parameter in ((0, weight), (2, bias), (4, scale)):
        if parameter is not None:
            own = parameter.dtype
            if own is not torch.float32:
                if own is not dtype:
                    return None
                kinds |= _TYPES[own] << shift
            if (
                parameter.numel() != columns
                or parameter.dim() != 1
                or not parameter.is_contiguous()
            ):
                return None
    return kinds


BACKEND = Backend(norm, add_norm, backward)
