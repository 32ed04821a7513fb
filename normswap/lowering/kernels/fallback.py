"""The operators on CPU tensors that C does not take as they are.

C (``operators.c``) takes contiguous float32, bfloat16 and float16, with parameters of the same
dtype or float32, and passes everything else on to here: made contiguous and of one dtype it tries
again, and what it still does not take runs in torch's own operators, which also say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normswap.lowering.kernels import eager
from normswap.lowering.kernels.arguments import check_buffers, check_no_grad


def functional(name: str) -> Callable[..., Any]:
    """What runs in place of the functional operator ``name`` when C declines."""
    operator = getattr(torch.ops.normswap, name).default
    by_torch = getattr(eager, name)

    def run(*given: Any) -> Any:
        tidy = _widened(name, [_contiguous(argument) for argument in given])
        if all(a is b for a, b in zip(tidy, given, strict=True)):
            return by_torch(*given)
        return operator(*tidy)

    return run


def in_place(name: str) -> Callable[..., None]:
    """What runs in place of the operator in place ``name`` when C declines."""
    operator = getattr(torch.ops.normswap, name).default
    out_of_place = getattr(torch.ops.normswap, name[:-1]).default
    buffers = 2 if name.startswith("add") else 1

    def run(*given: Any) -> None:
        check_no_grad(name, *(a for a in given if isinstance(a, Tensor)))
        if torch.is_grad_enabled():  # C cannot tell that nothing requires grad
            with torch.no_grad():
                operator(*given)
            return
        if buffers == 2:
            check_buffers(name, *given[:2])
        results = out_of_place(*given)
        for buffer, result in zip(given, results if buffers == 2 else (results,), strict=False):
            buffer.copy_(result)

    return run


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


def _widened(name: str, given: list[Any]) -> list[Any]:
    """Branch and residual in the wider dtype (autocast adds half branches to a float32 stream)."""
    if name.startswith("add") and given[0].dtype is not given[1].dtype:
        dtype = torch.promote_types(given[0].dtype, given[1].dtype)
        given[:2] = [tensor.to(dtype) for tensor in given[:2]]
    return given
