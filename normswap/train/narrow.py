"""bfloat16 autocast; where the processor has no bfloat16, rounded to it and computed in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NARROW = torch.bfloat16


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """For the forward pass."""
    return torch.autocast(device.type, dtype=NARROW)


def computed(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """For forward and backward pass, around ``autocast``. Without bfloat16 in the processor torch
    takes seven to ten times as long for a step as in float32, with this twice as long."""
    if device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return contextlib.nullcontext()
    return ComputedInFloat32()


class ComputedInFloat32(TorchDispatchMode):
    """Operators on bfloat16 tensors compute in float32, and round what they return to bfloat16
    where they would return that. Tensors between them, and those kept for the backward pass, are
    bfloat16 as ever, so all roundings but those within an operator are made."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))
        if func.is_view or func._schema.is_mutable or not any(map(_is_narrow, leaves)):
            return func(*args, **(kwargs or {}))
        dtypes = tuple(leaf.dtype if isinstance(leaf, torch.Tensor) else None for leaf in leaves)
        returned = _KINDS.get((func, dtypes))
        if returned is None:
            returned = _KINDS[func, dtypes] = _dtypes_of(func, leaves, spec)
        wide = [leaf.float() if _is_narrow(leaf) else leaf for leaf in leaves]
        wide_args, wide_kwargs = pytree.tree_unflatten(wide, spec)
        results, spec = pytree.tree_flatten(func(*wide_args, **wide_kwargs))
        rounded = [
            result if dtype is None else result.to(dtype)
            for result, dtype in zip(results, returned, strict=True)
        ]
        return pytree.tree_unflatten(rounded, spec)


_KINDS: dict[tuple[OpOverload, tuple[torch.dtype | None, ...]], list[torch.dtype | None]] = {}


def _is_narrow(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == NARROW


def _dtypes_of(
    func: OpOverload, leaves: Sequence[Any], spec: pytree.TreeSpec
) -> list[torch.dtype | None]:
    """What it returns for these, without computing it: not all of it needs to be bfloat16."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.empty_like(leaf, device="meta")
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    args, kwargs = pytree.tree_unflatten([shape(leaf) for leaf in leaves], spec)
    found = pytree.tree_leaves(func(*args, **kwargs))
    return [x.dtype if isinstance(x, torch.Tensor) else None for x in found]
