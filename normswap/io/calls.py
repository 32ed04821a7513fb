"""Calling a module as torch.export can capture it, however its forward is written."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError
from normswap.io.sources import Source


def named_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensor inputs by the names, and in the order, that torch.export gives them.

    Raises NormswapError if the module's forward does not take these inputs.
    """
    bound_inputs(module, args, kwargs)
    positional = inspect.signature(module.forward).bind_partial(*args).arguments
    leaves = pytree.tree_leaves_with_path({**positional, **kwargs})
    return {input_name(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


def canonical_name(name: str) -> str:
    """An input's name as torch.export writes it."""
    return re.sub(r"[^a-zA-Z0-9]", "_", name).lower()


def bound_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """What each parameter of the module's forward gets. Raises NormswapError if it does not take
    these inputs."""
    try:
        return inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        name = type(module).__name__
        raise NormswapError(f"{name}: forward does not take these inputs ({error})") from error


def input_name(path: Any) -> str:
    """The name that torch.export gives the input at a path in the arguments."""
    return canonical_name(_leaf_name(path))


@contextlib.contextmanager
def capturable(source: Source) -> Iterator[tuple[Source, list[str]]]:
    """While the block runs, the source's module takes only its arguments that hold tensors, and
    returns tensors in tuples, lists and mappings. Yields the source for that, and a list of the
    names of the output tensors. It is filled while the module runs, and stays empty where they have
    none.

    The other arguments keep their values of the example. Parameters of ``**kwargs`` are parameters
    of their own.
    """
    module, names = source.module, list[str]()
    inner = module.forward
    bound = bound_inputs(module, source.args, source.kwargs)
    signature, constants = _parameters(bound)
    inputs = set(named_inputs(module, source.args, source.kwargs))

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = {**constants, **signature.bind(*args, **kwargs).arguments}
        returned = _simplified(inner(*_positional(bound, given), **given))
        names[:] = _names(returned, inputs)
        return returned

    forward.__signature__ = signature  # type: ignore[attr-defined]
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        further = sum(len(bound.arguments[n]) for n in _of_kind(bound, Parameter.VAR_POSITIONAL))
        named = source.args[: len(source.args) - further]
        args = (*filter(_holds_tensors, named), *source.args[len(named) :])
        kwargs = {name: a for name, a in source.kwargs.items() if _holds_tensors(a)}
        yield replace(source, args=args, kwargs=kwargs), names
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def _parameters(bound: inspect.BoundArguments) -> tuple[inspect.Signature, dict[str, Any]]:
    """The parameters that take tensors, and the values of the others that were given."""
    parameters: list[Parameter] = []
    constants: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        if parameter.kind is Parameter.VAR_KEYWORD:
            further = {k: Parameter(k, Parameter.KEYWORD_ONLY) for k in value}
            values = value
        else:
            further, values = {name: parameter.replace(default=parameter.empty)}, {name: value}
        parameters += [further[k] for k in further if _holds_tensors(values[k])]
        constants |= {k: v for k, v in values.items() if not _holds_tensors(v)}
    return inspect.Signature(parameters), constants


def _positional(bound: inspect.BoundArguments, given: dict[str, Any]) -> list[Any]:
    """Takes the arguments out of ``given`` that the module must get by their position."""
    further = _of_kind(bound, Parameter.VAR_POSITIONAL)
    named = _of_kind(bound, Parameter.POSITIONAL_ONLY)
    if further:  # then all that stand before
        named += _of_kind(bound, Parameter.POSITIONAL_OR_KEYWORD)
    return [given.pop(name) for name in named] + [v for name in further for v in given.pop(name)]


def _of_kind(bound: inspect.BoundArguments, kind: Any) -> list[str]:
    return [name for name in bound.arguments if bound.signature.parameters[name].kind is kind]


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


# -- outputs -------------------------------------------------------------------------------------


def _simplified(item: Any) -> Any:
    """``item`` with mappings in place of dataclasses and named tuples that torch cannot write to a
    file, and None in place of texts and numbers."""
    if isinstance(item, str | int | float):
        return None
    if dataclasses.is_dataclass(item) and type(item) not in pytree.SUPPORTED_NODES:
        fields = [field.name for field in dataclasses.fields(item)]
        return {name: _simplified(getattr(item, name)) for name in fields}
    if isinstance(item, tuple) and hasattr(item, "_asdict"):
        item = item._asdict()
    if type(item) is dict:
        return {key: _simplified(value) for key, value in item.items()}
    if type(item) in (list, tuple):
        return type(item)(_simplified(value) for value in item)
    return item


def _names(returned: Any, taken: set[str]) -> list[str]:
    """A name for each tensor in what a module returned, from the keys and fields that lead to it.
    None where that is a tensor or a sequence."""
    named = _tensors(returned) if isinstance(returned, Mapping) else ()
    return distinct([_leaf_name(path) for path, _ in named], taken)


def distinct(names: Sequence[str], taken: set[str]) -> list[str]:
    """``names``, with something behind those that are ``taken`` or stand twice."""
    found: list[str] = []
    for name in names:
        while name in taken or name in found:
            name += "_out"
        found.append(name)
    return found


def _tensors(tree: Any) -> Sequence[tuple[Any, torch.Tensor]]:
    leaves = pytree.tree_leaves_with_path(tree)
    return [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def _leaf_name(path: Any) -> str:
    """The keys, indices and fields that lead to a leaf of a tree, joined."""
    keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path)
    return "_".join(str(key) for key in keys)
