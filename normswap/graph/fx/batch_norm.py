"""BatchNorm modules in FX graphs: made new, and restored from the operators that export leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from normswap.graph.fx.meta import call_arguments
from normswap.graph.fx.module_tree import get_path, put_module

TENSORS = ("weight", "bias", "running_mean", "running_var")
_MODULES: Mapping[int, type[nn.modules.batchnorm._BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
RANKS = tuple(_MODULES)


def batch_norm_module(
    rank: int, tensors: Mapping[str, torch.Tensor], epsilon: float, momentum: float = 0.1
) -> nn.Module:
    """A trainable BatchNorm over axis 1 of a value of ``rank`` axes, in evaluation mode.

    ``tensors``: by the names in ``TENSORS``, each [C].
    """
    mean = tensors["running_mean"]
    module = _MODULES[rank](len(mean), eps=epsilon, momentum=momentum, dtype=mean.dtype)
    for name in TENSORS:
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
        tensors = {name: get_path(module, f"{owner}.{name}") for name in TENSORS}
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
        for name in TENSORS:
            attribute = arguments[name]
            if not attribute.users:
                module.graph.erase_node(attribute)


def _owner(arguments: dict[str, Any]) -> str | None:
    """The path that the four tensors are attributes of, if nothing else reads them."""
    owners = set()
    for name in TENSORS:
        node = arguments[name]
        if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) != 1:
            return None
        owner, _, attribute = str(node.target).rpartition(".")
        if attribute != name:
            return None
        owners.add(owner)
    owner = owners.pop()
    return owner if owner and not owners else None
