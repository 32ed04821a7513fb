"""The operators of ``torch.ops.normswap``: their arguments, and what these must be.

Everything that is done for each operator (declaring it, shapes for fake tensors, torch's own
operators in its place, gradients, the kernels of a device) follows from ``NORMS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[tuple[Tensor, ...], Tensor | None, Tensor | None, Tensor | None, float]
"""Of any norm: the tensors that it normalises or adds, weight, bias, scale and eps."""


@dataclass(frozen=True)
class Norm:
    """LayerNorm if ``centred``, else RMSNorm; ``with_sum``: of residual + scale * branch, which is
    computed too."""

    name: str
    centred: bool
    with_sum: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The inputs that the operator in place overwrites, in the order of the results."""
        return ("branch", "residual") if self.with_sum else ("x",)

    @property
    def schema(self) -> str:
        """``name(...) -> ...`` as torch.library takes it."""
        results = "(Tensor, Tensor)" if self.with_sum else "Tensor"
        return f"{self.name}({self._inputs('Tensor', 'Tensor')}) -> {results}"

    @property
    def schema_in_place(self) -> str:
        return f"{self.name}_({self._inputs('Tensor(a!)', 'Tensor(b!)')}) -> ()"

    @property
    def schema_backward(self) -> str:
        """Of the gradients of x, weight and, if centred, bias; ``grad_sum`` is added to x's."""
        results = ", ".join(["Tensor"] * (3 if self.centred else 2))
        inputs = "Tensor grad, Tensor? grad_sum, Tensor x, Tensor? weight, float eps"
        return f"{self.name}_backward({inputs}) -> ({results})"

    def _inputs(self, *types: str) -> str:
        tensors = [f"{kind} {name}" for kind, name in zip(types, self.tensors, strict=False)]
        bias, scale = ["Tensor? bias"] * self.centred, ["Tensor? scale"] * self.with_sum
        return ", ".join([*tensors, "Tensor? weight", *bias, *scale, "float eps"])

    def arguments(self, given: Sequence[Any]) -> Arguments:
        """What the operator was called with, by position."""
        count = 2 if self.with_sum else 1
        bias = given[count + 1] if self.centred else None
        scale = given[-2] if self.with_sum else None
        return tuple(given[:count]), given[count], bias, scale, given[-1]


NORMS = {
    norm.name: norm
    for norm in (
        Norm("layer_norm", centred=True, with_sum=False),
        Norm("rms_norm", centred=False, with_sum=False),
        Norm("add_layer_norm", centred=True, with_sum=True),
        Norm("add_rms_norm", centred=False, with_sum=True),
    )
}


def check(name: str, arguments: Arguments) -> None:
    """Raises a RuntimeError of one line, for the operator called ``name``, unless the tensors are
    floating, have a last axis and one shape and device, and each parameter is [C] on it."""
    tensors, weight, bias, scale, _ = arguments
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise RuntimeError(
                f"normswap::{name}: {tensor.dtype} has no norm; give a floating-point tensor"
            )
        if not tensor.dim():
            raise RuntimeError(
                f"normswap::{name}: a scalar has no last axis; give at least one axis"
            )
        if tensor is tensors[0]:
            _check_parameters(name, tensor, {"weight": weight, "bias": bias, "scale": scale})
    first, last = tensors[0], tensors[-1]
    if first.shape != last.shape or first.device != last.device:
        raise RuntimeError(
            f"normswap::{name}: branch {list(first.shape)} on {first.device} and residual "
            f"{list(last.shape)} on {last.device} differ; expand or move one first"
        )


def _check_parameters(name: str, x: Tensor, parameters: dict[str, Tensor | None]) -> None:
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


def check_no_grad(name: str, given: Sequence[Any]) -> None:
    """Raises a RuntimeError if a tensor needs a gradient, which no operator in place can give."""
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in given):
        raise RuntimeError(
            f"normswap::{name} is for inference: a tensor requires grad; use torch.no_grad(), or "
            f"normswap::{name[:-1]}"
        )


def check_buffers(name: str, branch: Tensor, residual: Tensor) -> None:
    """Raises a RuntimeError unless the two can hold different results: they need one dtype, and no
    memory in common."""
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
