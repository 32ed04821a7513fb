"""From a ``Source`` to a ``torch.export.ExportedProgram`` with dynamic batch sizes."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError, first_line, quiet
from normswap.io.source import Source, evaluating

_LOG = logging.getLogger("normswap")
_TALKATIVE = ("torch.export", "torch.fx.experimental.symbolic_shapes")


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
        return _export(source, _named)
    except Exception:  # torch.export passes on whatever the module raises
        wanted = source.dynamic_axes
    try:
        program = _export(source, _automatic)
        varying = _varying(source, program)
        if varying != wanted:
            # Once more: a size that was found to be fixed must be a number in the graph.
            source = replace(source, dynamic_axes=varying)
            program = _export(source, _automatic)
    except Exception:
        source = replace(source, dynamic_axes={})
        try:
            program = _export(source, _automatic)
        except Exception as error:
            raise NormswapError(
                f"{source.name}: torch.export cannot capture it ({first_line(error)}); its "
                "forward must not depend on the values of tensors"
            ) from error
    _report_fixed(source.name, wanted, source.dynamic_axes)
    return program


def named_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensor inputs by the names, and in the order, that torch.export gives them.

    Raises NormswapError if the module's forward does not take these inputs.
    """
    _bound(module, args, kwargs)
    positional = inspect.signature(module.forward).bind_partial(*args).arguments
    leaves = pytree.tree_leaves_with_path({**positional, **kwargs})
    return {_leaf_name(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


def canonical_name(name: str) -> str:
    """An input's name as torch.export writes it."""
    return re.sub(r"[^a-zA-Z0-9]", "_", name).lower()


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        name = type(module).__name__
        raise NormswapError(f"{name}: forward does not take these inputs ({error})") from error


def _leaf_name(path: tuple[Any, ...]) -> str:
    keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path)
    return canonical_name("_".join(str(key) for key in keys))


def _export(source: Source, dims: Callable[[dict[str, Any], str], Any]) -> ExportedProgram:
    shapes = _shapes(source, dims)
    # On failure torch prints the graph so far to the standard error stream.
    with evaluating(source.module), quiet(*_TALKATIVE, stderr=True):
        return torch.export.export(
            source.module, source.args, source.kwargs, dynamic_shapes=shapes, strict=False
        )


def _named(dims: dict[str, Any], name: str) -> Any:
    """One size per name, checked by torch: it fails if the module restricts it."""
    return dims.setdefault(name, Dim(name, min=1))


def _automatic(*_: Any) -> Any:
    """Whatever the module allows, down to a fixed size."""
    return Dim.AUTO


def _shapes(source: Source, dims: Callable[[dict[str, Any], str], Any]) -> Any:
    made: dict[str, Any] = {}

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, torch.Tensor):
            return None
        axes = source.dynamic_axes.get(_leaf_name(path), {})
        return {axis: dims(made, name) for axis, name in axes.items()}

    return pytree.tree_map_with_path(of_leaf, _bound(source.module, source.args, source.kwargs))


def _varying(source: Source, program: ExportedProgram) -> dict[str, dict[int, str]]:
    """Those of the dynamic axes that are still symbols in the program."""
    varying: dict[str, dict[int, str]] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        for axis, label in source.dynamic_axes.get(node.name, {}).items():
            if not is_concrete_int(node.meta["val"].shape[axis]):
                varying.setdefault(node.name, {})[axis] = label
    return varying


def _report_fixed(
    owner: str, wanted: dict[str, dict[int, str]], varying: dict[str, dict[int, str]]
) -> None:
    fixed = [
        f"axis {axis} of '{name}'"
        for name, axes in wanted.items()
        for axis in axes
        if axis not in varying.get(name, {})
    ]
    if fixed:
        told = ", ".join(fixed)
        _LOG.warning("%s: captured for the example's size of %s, which cannot vary", owner, told)
