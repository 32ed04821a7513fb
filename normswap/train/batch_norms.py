"""The BatchNorms of a model in training: over the batches of all processes, statistics anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

from normswap import distributed
from normswap.fit.moments import ChannelMoments
from normswap.graph.fx.module_tree import put_module


class GroupBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's BatchNorm with the mean and variance of all processes' batches; channels on axis 1.

    torch.nn.SyncBatchNorm refuses CPU tensors, so sums are reduced here, with their gradients.
    """

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.plain_type = type(plain)
        share_tensors(plain, self)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        # The mean first, then squares about it: no digits go where the mean is large.
        count = torch.full_like(x[0, :1].reshape(-1)[:1], x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([x.sum(axes), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / total
        self._track(mean.detach(), variance.detach(), total)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def share_tensors(
    source: nn.modules.batchnorm._BatchNorm, target: nn.modules.batchnorm._BatchNorm
) -> None:
    """Gives ``target`` the parameters and statistics of ``source``, not copies."""
    target.weight, target.bias = source.weight, source.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        target.register_buffer(name, getattr(source, name))
    target.train(source.training)


def over_group(module: nn.Module) -> None:
    """Every BatchNorm becomes one over the group of processes, if there is one."""
    if not distributed.active():
        return
    synchronised = dist.get_backend() == "nccl"
    for path, child in list(module.named_modules()):
        if isinstance(child, BatchNorm):
            new: nn.Module
            if synchronised:
                new = nn.SyncBatchNorm(child.num_features, child.eps, child.momentum)
                share_tensors(child, new)
                new.plain_type = type(child)  # type: ignore[assignment]
            else:
                new = GroupBatchNorm(child)
            put_module(module, path, new)


def without_group(module: nn.Module) -> None:
    """The BatchNorms that ``over_group`` replaced, with what they have learnt."""
    for path, child in list(module.named_modules()):
        if isinstance(child, GroupBatchNorm | nn.SyncBatchNorm):
            plain = child.plain_type(child.num_features, child.eps, child.momentum)  # type: ignore[operator]
            share_tensors(child, plain)
            put_module(module, path, plain)


BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {n: child for n, child in module.named_modules() if isinstance(child, BatchNorm)}


@contextlib.contextmanager
def own_statistics(norms: Iterable[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Within it the BatchNorms take the statistics of each batch, and their running ones stay."""
    before = [(norm, norm.training, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm, _, _, tracked in before:
            norm.train()
            norm.momentum = 0.0
            norm.num_batches_tracked = None if tracked is None else tracked.clone()
        yield
    finally:
        for norm, training, momentum, tracked in before:
            norm.train(training)
            norm.momentum, norm.num_batches_tracked = momentum, tracked


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
