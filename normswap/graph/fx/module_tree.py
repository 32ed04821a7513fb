"""What a ``torch.fx.GraphModule`` holds, by dotted path: tensors and BatchNorm modules."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from normswap.graph.fx.meta import call_arguments

BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_MODULES: Mapping[int, type[nn.modules.batchnorm._BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
BATCH_NORM_RANKS = tuple(_MODULES)
"""How many axes a value may have that a BatchNorm module normalises."""


def deepcopied(thing: Any) -> Any:
    """A deep copy of a graph or GraphModule, without the warning of torch's own pytree."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
        return copy.deepcopy(thing)


def with_inputs_in_order(module: nn.Module) -> fx.GraphModule:
    """A captured module that is called with its inputs in order, however they were given at
    capture."""
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(CodeGen())
    return fx.GraphModule(module, module.graph)


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


def batch_norm_module(
    rank: int, tensors: Mapping[str, torch.Tensor], epsilon: float, momentum: float = 0.1
) -> nn.Module:
    """A trainable BatchNorm over axis 1 of a value of ``rank`` axes, in evaluation mode.

    ``tensors``: by the names in ``BATCH_NORM_TENSORS``, each [C].
    """
    mean = tensors["running_mean"]
    module = _MODULES[rank](len(mean), eps=epsilon, momentum=momentum, dtype=mean.dtype)
    for name in BATCH_NORM_TENSORS:
        tensor = getattr(module, name)
        tensor.data = tensors[name].detach()
    return module.eval()


def restore_batch_norms(module: fx.GraphModule) -> None:
    """Evaluation-mode ``aten.batch_norm`` calls become modules again, which train.

    Only those whose four tensors are the attributes of one owner, as an exported module leaves.
    """
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.aten.batch_norm.default:
            continue
        arguments = call_arguments(node)
        owner = _owner(arguments)
        value = node.meta.get("val")
        if owner is None or arguments["training"] or not isinstance(value, torch.Tensor):
            continue
        if value.dim() not in _MODULES:
            continue
        tensors = {name: get_path(module, f"{owner}.{name}") for name in BATCH_NORM_TENSORS}
        put_module(
            module,
            owner,
            batch_norm_module(value.dim(), tensors, arguments["eps"], arguments["momentum"]),
        )
        with module.graph.inserting_before(node):
            call = module.graph.call_module(owner, (arguments["input"],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        for name in BATCH_NORM_TENSORS:
            attribute = arguments[name]
            if not attribute.users:
                module.graph.erase_node(attribute)


def _owner(arguments: dict[str, Any]) -> str | None:
    """The path that the four tensors are attributes of, if nothing else reads them."""
    owners = set()
    for name in BATCH_NORM_TENSORS:
        node = arguments[name]
        if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) != 1:
            return None
        owner, _, attribute = str(node.target).rpartition(".")
        if attribute != name:
            return None
        owners.add(owner)
    owner = owners.pop()
    return owner if owner and not owners else None
