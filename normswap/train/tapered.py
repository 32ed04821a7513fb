"""A predicted scale that becomes 1 bit by bit while the model around it is trained.

y = x exp(t u) with t from 1 to 0, where u is the logarithm that was predicted (``Predicted``). What
is left is the affine map behind it, which folds away (TaperNorm has this idea for norms).
"""

from __future__ import annotations

import torch
from torch import fx, nn

from normswap.graph.fx.module_tree import drop_unused, free_path

_EXP, _CLIP, _MUL = (
    torch.ops.aten.exp.default,
    torch.ops.aten.clamp.default,
    torch.ops.aten.mul.Tensor,
)


class TaperedScale(nn.Module):
    """``share`` times the logarithm of a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.share = 1.0

    def forward(self, log_scale: torch.Tensor) -> torch.Tensor:
        return log_scale * self.share


def make_tapered(module: fx.GraphModule) -> int:
    """Puts a TaperedScale in front of the exponential of each predicted scale; how many."""
    found = [node for node in module.graph.nodes if _is_predicted(node)]
    for node in found:
        path = free_path(module, f"{node.args[0].name}_tapered")
        module.add_submodule(path, TaperedScale())
        with module.graph.inserting_before(node):
            tapered = module.graph.call_module(path, (node.args[0],))
        tapered.meta.update(node.args[0].meta)
        node.args = (tapered,)
    module.recompile()
    return len(found)


def drop_tapered(module: fx.GraphModule) -> None:
    """Takes out every tapered scale, as it is at a share of 0: what it multiplied stays."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not isinstance(modules.get(node.target), TaperedScale):
            continue
        (exponential,) = node.users
        for product in list(exponential.users):
            product.replace_all_uses_with(product.args[0])
    module.graph.eliminate_dead_code()
    drop_unused(module)
    module.recompile()


def _is_predicted(node: fx.Node) -> bool:
    """exp(clip(u)) [..., 1], by which a value [..., C] is multiplied."""
    before = node.args[0] if node.target is _EXP else None
    if not isinstance(before, fx.Node) or before.target is not _CLIP or not node.users:
        return False
    return node.meta["val"].shape[-1] == 1 and all(
        user.target is _MUL and user.args[1] is node and user.meta["val"].shape[-1] > 1
        for user in node.users
    )
