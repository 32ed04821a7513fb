"""The operators on CUDA tensors: Triton where it is installed and fits, else torch's own operators.

Triton is imported when the first CUDA tensor arrives.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normswap.lowering.kernels import eager
from normswap.lowering.kernels.library import wanted
from normswap.lowering.kernels.signatures import Arguments, Norm, check_buffers

_LOG = logging.getLogger("normswap")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def forward(norm: Norm) -> Callable[..., Any]:
    """What runs the functional operator of ``norm``."""

    def run(*given: Any) -> Any:
        arguments = norm.arguments(given)
        tensors = _alike(arguments[0])
        results = tuple(torch.empty_like(tensor) for tensor in tensors)
        if _written(norm, (tensors, *arguments[1:]), results):
            return results if norm.with_sum else results[0]
        return eager.forward(norm, *given)

    return run


def forward_in_place(norm: Norm) -> Callable[..., None]:
    """What runs the operator in place of ``norm``."""
    out_of_place = forward(norm)

    def run(*given: Any) -> None:
        arguments = norm.arguments(given)
        tensors = arguments[0]
        if norm.with_sum:
            check_buffers(f"{norm.name}_", *tensors)
        if not (all(t.is_contiguous() for t in tensors) and _written(norm, arguments, tensors)):
            eager.write_back(norm, out_of_place, given)

    return run


def backward(norm: Norm) -> Callable[..., tuple[Tensor, ...]]:
    """What runs the operator for the gradients of ``norm``."""

    def run(
        grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, ...]:
        triton = _triton()
        gradients = (grad,) if grad_sum is None else (grad, grad_sum)
        if (
            triton is None
            or not _fits(x, weight)
            or any(g.dtype is not x.dtype or g.shape != x.shape for g in gradients)
        ):
            return eager.backward(norm, grad, grad_sum, x, weight, eps)
        source, grad = x.contiguous(), grad.contiguous()
        grad_sum = None if grad_sum is None else grad_sum.contiguous()
        grad_x = torch.empty_like(source)
        sums = [
            x.new_empty(x.shape[-1:], dtype=torch.float32) for _ in range(2 if norm.centred else 1)
        ]
        triton.backward(grad, grad_sum, source, grad_x, weight, sums, eps)
        return grad_x, *sums

    return run


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


def _written(norm: Norm, arguments: Arguments, results: tuple[Tensor, ...]) -> bool:
    """Whether Triton wrote ``results``, which may be the tensors of ``arguments``; all are
    contiguous."""
    triton = _triton()
    tensors, weight, bias, scale, eps = arguments
    first, last = tensors[0], tensors[-1]
    if (
        triton is None
        or not _fits(first, weight, bias, scale)
        or last.dtype is not first.dtype
        or last.shape != first.shape
        or last.device != first.device
    ):
        return False
    triton.forward(norm.centred, tensors, results, weight, bias, scale, eps)
    return True


def _alike(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Contiguous and of one dtype."""
    if tensors[0].dtype is not tensors[-1].dtype:
        dtype = eager.result_dtype(tensors)
        tensors = tuple(tensor.to(dtype) for tensor in tensors)
    # is_contiguous() is cheaper than contiguous()
    return tuple(t if t.is_contiguous() else t.contiguous() for t in tensors)


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
