"""What an operator's arguments must be; each check raises a RuntimeError of one line."""

from __future__ import annotations

import torch
from torch import Tensor


def check_norm(name: str, x: Tensor, **parameters: Tensor | None) -> None:
    """``x`` is floating, has a last axis, and each parameter is [C] on its device."""
    if not x.is_floating_point():
        raise RuntimeError(f"normswap::{name}: {x.dtype} has no norm; give a floating-point tensor")
    if not x.dim():
        raise RuntimeError(f"normswap::{name}: a scalar has no last axis; give at least one axis")
    columns = x.shape[-1]
    for key, parameter in parameters.items():
        if parameter is None:
            continue
        if parameter.dim() != 1 or parameter.shape[0] != columns:
            raise RuntimeError(
                f"normswap::{name}: {key} has shape {list(parameter.shape)}, the last axis "
                f"{columns} numbers; give [{columns}]"
            )
        if parameter.device != x.device:
            raise RuntimeError(
                f"normswap::{name}: {key} is on {parameter.device}, the input on {x.device}; "
                "move one to the other"
            )


def check_add_norm(
    name: str, branch: Tensor, residual: Tensor, **parameters: Tensor | None
) -> None:
    """``check_norm``, and ``residual`` has the branch's shape and device."""
    check_norm(name, branch, **parameters)
    check_norm(name, residual)
    if branch.shape != residual.shape or branch.device != residual.device:
        raise RuntimeError(
            f"normswap::{name}: branch {list(branch.shape)} on {branch.device} and residual "
            f"{list(residual.shape)} on {residual.device} differ; expand or move one first"
        )


def check_no_grad(name: str, *tensors: Tensor | None) -> None:
    """No tensor needs a gradient that an operator in place cannot give."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"normswap::{name} is for inference: a tensor requires grad; use torch.no_grad(), or "
            f"normswap::{name[:-1]}"
        )


def check_buffers(name: str, branch: Tensor, residual: Tensor) -> None:
    """The two can hold different results: one dtype, and no memory in common."""
    if branch.dtype != residual.dtype:
        raise RuntimeError(
            f"normswap::{name}: branch is {branch.dtype}, residual {residual.dtype}; in place both "
            f"need one dtype, or use normswap::{name[:-1]}"
        )
    apart = abs(branch.data_ptr() - residual.data_ptr())
    # Views that interleave are apart although their addresses are near.
    if apart < branch.nbytes and (
        not apart or (branch.is_contiguous() and residual.is_contiguous())
    ):
        raise RuntimeError(
            f"normswap::{name}: branch and residual share memory; clone one, or use "
            f"normswap::{name[:-1]}"
        )
