"""A ``Source`` from a user's module and example inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError
from normswap.io.capture import canonical_name, named_inputs
from normswap.io.source import Source


def module_source(
    module: nn.Module,
    example_inputs: torch.Tensor | Sequence[Any] | Mapping[str, Any],
    dynamic_axes: dict[str, dict[int, str]] | None = None,
) -> Source:
    """``module`` with the inputs that it is called with: one tensor, a tuple of arguments, or a
    mapping of keyword arguments.

    ``dynamic_axes`` names the axes that may vary by input name. Without it the first axis of
    every tensor is taken for a batch, and those of equal size for the same one; a batch of one is
    repeated to two, because torch.export takes a size of one for a constant. With it, the same is
    done to the axes that it names.
    Raises NormswapError for inputs that the module's forward does not take, that hold no tensor,
    or for axes that they do not have.
    """
    name = type(module).__name__
    args, kwargs = _arguments(example_inputs)
    inputs = named_inputs(module, args, kwargs)
    if not inputs:
        raise NormswapError(f"{name}: example_inputs holds no tensor; give what it is called with")
    if dynamic_axes is None:
        axes = _first_axes(inputs)
    else:
        axes = {canonical_name(key): named for key, named in dynamic_axes.items()}
        _check_axes(name, axes, inputs)
    larger = {id(inputs[key]): _enlarged(inputs[key], named) for key, named in axes.items()}
    args, kwargs = pytree.tree_map(lambda leaf: larger.get(id(leaf), leaf), (args, kwargs))
    return Source(name, module, args, kwargs, axes)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def _first_axes(inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, str]]:
    names: dict[int, str] = {}
    axes = {}
    for key, tensor in inputs.items():
        if tensor.dim() and tensor.shape[0] > 0:
            size = max(tensor.shape[0], 2)
            name = "batch" if not names else f"batch_{len(names) + 1}"
            axes[key] = {0: names.setdefault(size, name)}
    return axes


def _check_axes(
    owner: str, axes: dict[str, dict[int, str]], inputs: dict[str, torch.Tensor]
) -> None:
    for key, named in axes.items():
        if key not in inputs:
            raise NormswapError(
                f"{owner}: '{key}' in dynamic_axes is not an input; it takes {', '.join(inputs)}"
            )
        for axis in named:
            if not 0 <= axis < inputs[key].dim():
                raise NormswapError(f"{owner}: input '{key}' has no axis {axis}; count from 0")


def _enlarged(tensor: torch.Tensor, axes: Iterable[int]) -> torch.Tensor:
    for axis in axes:
        if tensor.shape[axis] == 1:
            tensor = torch.cat([tensor, tensor], axis)
    return tensor
