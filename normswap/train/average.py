"""An exponential average of a module's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class WeightAverage:
    """a <- decay * a + (1 - decay) * w after each step, from the weights it starts with.

    The decay of the first steps is (1 + n) / (10 + n), if that is less (as in timm and TensorFlow).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.tensors = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        parameters = dict(self._module.named_parameters())
        torch._foreach_lerp_(
            list(self.tensors.values()), [parameters[n] for n in self.tensors], 1 - decay
        )

    @torch.no_grad()
    def copy_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Gives the average to the module."""
        for name, parameter in self._module.named_parameters():
            parameter.copy_(self.tensors[name])
