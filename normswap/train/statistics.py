"""BatchNorms' running statistics, taken anew from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from normswap.fit.moments import ChannelMoments

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {n: child for n, child in module.named_modules() if isinstance(child, BatchNorm)}


@torch.no_grad()
def recalibrate(
    module: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object]
) -> None:
    """Sets every BatchNorm's running statistics to those over all of ``batches``.

    Each batch runs with its own statistics, as in training; the sums over all are merged exactly,
    not averaged (``ChannelMoments``). Nothing but BatchNorms is in training mode.
    """
    norms = batch_norms(module)
    moments = {name: ChannelMoments() for name in norms}
    running = {n: (b.running_mean.clone(), b.running_var.clone()) for n, b in norms.items()}  # type: ignore[union-attr]

    def gather(name: str) -> Callable[..., None]:
        return lambda _module, args: moments[name].add(args[0].float().cpu().numpy(), 1)

    hooks = [norm.register_forward_pre_hook(gather(name)) for name, norm in norms.items()]
    was = module.training
    module.eval()
    try:
        for norm in norms.values():
            norm.train()
        for batch in batches:
            forward(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
        module.train(was)
    for name, norm in norms.items():
        found = moments[name]
        mean, variance = running[name]
        if found.count:
            mean, variance = torch.from_numpy(found.mean), torch.from_numpy(found.variance)
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
