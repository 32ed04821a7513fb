"""Reading and changing what a ``torch.fx.GraphModule`` holds, by dotted path."""

from __future__ import annotations

import copy
import operator
import warnings
from typing import Any

import torch
from torch import fx, nn


def deepcopied(thing: Any) -> Any:
    """A deep copy of a graph or GraphModule, without the warning of torch's own pytree."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
        return copy.deepcopy(thing)


def get_path(module: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(module)


def put_tensor(module: nn.Module, path: str, tensor: torch.Tensor, parameter: bool) -> None:
    """Sets a parameter or a buffer at a dotted path, making the modules on the way."""
    owner_path, _, name = path.rpartition(".")
    owner = module
    for part in filter(None, owner_path.split(".")):
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, name):
        delattr(owner, name)
    if parameter and (tensor.is_floating_point() or tensor.is_complex()):
        owner.register_parameter(name, nn.Parameter(tensor))
    else:
        owner.register_buffer(name, tensor)


def put_module(module: nn.Module, path: str, child: nn.Module) -> None:
    """Puts ``child`` at a dotted path in place of what was there."""
    owner, _, name = path.rpartition(".")
    setattr(get_path(module, owner) if owner else module, name, child)


def free_path(module: nn.Module, path: str) -> str:
    candidate, count = path, 1
    while True:
        try:
            get_path(module, candidate)
        except AttributeError:
            return candidate
        count += 1
        candidate = f"{path}_{count}"


def drop_unused(module: fx.GraphModule) -> None:
    """Deletes parameters, buffers and modules that no node refers to."""
    used = {str(n.target) for n in module.graph.nodes if n.op in ("get_attr", "call_module")}
    held = tuple(f"{target}." for target in used)
    names = [n for n, _ in module.named_parameters(remove_duplicate=False)]
    names += [n for n, _ in module.named_buffers(remove_duplicate=False)]
    for name in names:
        if name not in used and not name.startswith(held):
            owner, _, attribute = name.rpartition(".")
            delattr(get_path(module, owner) if owner else module, attribute)
    parts = [target.split(".") for target in used]
    keep = {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}
    for name, child in sorted(module.named_modules(), key=lambda item: -item[0].count(".")):
        if name and name not in keep and not name.startswith(held) and not list(child.children()):
            owner, _, attribute = name.rpartition(".")
            delattr(get_path(module, owner) if owner else module, attribute)


def move_module(module: fx.GraphModule, target: str, wanted: str) -> bool:
    """Moves a submodule to the path it was meant for once that path is free."""
    if target == wanted:
        return True
    if free_path(module, wanted) != wanted:
        return False
    child = get_path(module, target)
    module.delete_submodule(target)
    module.add_submodule(wanted, child)
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target == target:
            node.target = wanted
    return True
