"""Capturing a module as a ``torch.export.ExportedProgram`` with dynamic batch sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError, first_line, quiet
from normswap.io.calls import bound_inputs, canonical_name, input_name, named_inputs
from normswap.io.sources import Source, evaluating

_LOG = logging.getLogger("normswap")
_LOGGERS = ("torch.export", "torch.fx.experimental.symbolic_shapes")


def capture(source: Source) -> ExportedProgram:
    """The graph of ``source``'s module in evaluation mode; parameters are shared with it.

    The axes in ``source.dynamic_axes`` are dynamic from size 1. Where the module fixes one of
    them, its size is that of the example, and one logged line says so.
    Raises NormswapError if torch.export cannot capture the module at all.
    """
    names = list(named_inputs(source.module, source.args, source.kwargs))
    if unknown := sorted(source.dynamic_axes.keys() - set(names)):
        raise NormswapError(
            f"{source.name}: '{unknown[0]}' is not an input; it takes {', '.join(names)}"
        )
    try:
        return _export(source, named=True)
    except Exception:  # torch.export passes on whatever the module raises
        wanted = source.dynamic_axes
    try:
        program = _export(source, named=False)
        varying = _varying(source, program)
        if varying != wanted:
            # Capture again: a size that turned out to be fixed must be a number in the graph.
            source = replace(source, dynamic_axes=varying)
            program = _export(source, named=False)
    except Exception:
        source = replace(source, dynamic_axes={})
        try:
            program = _export(source, named=False)
        except Exception as error:
            raise NormswapError(
                f"{source.name}: torch.export cannot capture it ({first_line(error)}); its "
                "forward must not depend on the values of tensors"
            ) from error
    varying = source.dynamic_axes
    fixed = [
        f"axis {axis} of '{name}'"
        for name, axes in wanted.items()
        for axis in axes
        if axis not in varying.get(name, {})
    ]
    if fixed:
        _LOG.warning(
            "%s: captured for the example's size of %s, which cannot vary",
            source.name,
            ", ".join(fixed),
        )
    return program


def module_source(
    module: nn.Module,
    example_inputs: torch.Tensor | Sequence[Any] | Mapping[str, Any],
    dynamic_axes: dict[str, dict[int, str]] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Source:
    """A ``Source`` of a module and its example inputs: one tensor, a tuple of arguments, or a
    mapping of keyword arguments; and ``example_kwargs``, further keyword arguments.

    ``dynamic_axes``: by input name, the name of each axis that may vary. By default the first axis
    of every tensor is a batch, and first axes of equal size are the same one. A dynamic axis of
    size one is repeated to two, because torch.export takes a size of one for a constant.
    Raises NormswapError for inputs that the module's forward does not take or that hold no tensor,
    and for axes that they do not have.

    Example::

        program = capture(module_source(vit, torch.zeros(1, 3, 224, 224)))
    """
    name = type(module).__name__
    args: tuple[Any, ...] = ()
    kwargs = dict(example_kwargs or {})
    if isinstance(example_inputs, Mapping):
        if twice := sorted(example_inputs.keys() & kwargs.keys()):
            raise NormswapError(f"{name}: '{twice[0]}' is in example_inputs and example_kwargs")
        kwargs |= example_inputs
    elif isinstance(example_inputs, torch.Tensor):
        args = (example_inputs,)
    else:
        args = tuple(example_inputs)
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


def _export(source: Source, named: bool) -> ExportedProgram:
    """The program with one size per name, which fails if the module restricts it; or, unless
    ``named``, with whatever sizes the module allows, down to fixed ones."""
    dims: dict[str, Any] = {}

    def sizes(path: tuple[Any, ...], leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, torch.Tensor):
            return None
        axes = source.dynamic_axes.get(input_name(path), {})
        if not named:
            return dict.fromkeys(axes, Dim.AUTO)
        most = source.longest
        for label in axes.values():
            dims.setdefault(label, Dim(label, min=1, max=most.get(label)))
        return {axis: dims[label] for axis, label in axes.items()}

    bound = dict(bound_inputs(source.module, source.args, source.kwargs).arguments)
    shapes = pytree.tree_map_with_path(sizes, bound)
    # On failure torch prints the graph so far to the standard error stream.
    with evaluating(source.module), quiet(*_LOGGERS, stderr=True):
        return torch.export.export(
            source.module, source.args, source.kwargs, dynamic_shapes=shapes, strict=False
        )


def _varying(source: Source, program: ExportedProgram) -> dict[str, dict[int, str]]:
    """Those of the dynamic axes that are still symbols in the program."""
    varying: dict[str, dict[int, str]] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        for axis, label in source.dynamic_axes.get(node.name, {}).items():
            if not is_concrete_int(node.meta["val"].shape[axis]):
                varying.setdefault(node.name, {})[axis] = label
    return varying


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
