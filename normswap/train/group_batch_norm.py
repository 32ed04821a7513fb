"""BatchNorm over the batches of all processes."""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

from normswap import distributed
from normswap.graph.fx.module_tree import put_module
from normswap.train.statistics import BatchNorm


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
