"""What an fx node records about itself: arguments, module path, shape, dtype, fake tensors."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from normswap.graph.tensors import numpy_dtype


def call_arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by their schema names, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)}
    return named | dict(node.kwargs)


def is_tuple_call(node: fx.Node) -> bool:
    return bool(node.users) and all(
        user.target is operator.getitem and user.args[0] is node for user in node.users
    )


def module_scope(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0] if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else str(path)


def shape_and_dtype(node: fx.Node) -> tuple[tuple[int, ...] | None, np.dtype[Any] | None]:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        shape = tuple(_hint(size) for size in value.shape)
        return (None if -1 in shape else shape), numpy_dtype(value.dtype)
    if isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        return (), np.dtype(np.int64)
    return None, None


def _hint(size: Any) -> int:
    """The size at the example inputs; -1 for one that depends on data."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if isinstance(hint, int) and not math.isnan(hint) else -1


def fake_mode_of(module: fx.GraphModule) -> Any:
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None


def as_fake(tensor: torch.Tensor, mode: Any) -> torch.Tensor:
    return mode.from_tensor(tensor, static_shapes=True) if mode is not None else tensor
