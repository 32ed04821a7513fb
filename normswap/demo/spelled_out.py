"""LayerNorm as many exporters and hand-written models have it: several operators."""

from __future__ import annotations

import copy

import torch
from torch import nn


class SpelledOutLayerNorm(nn.Module):
    """What ``norm`` computes over the last axis, operator by operator, with its parameters."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        normal: torch.Tensor = centred / torch.sqrt(variance + self.epsilon)
        return normal * self.weight + self.bias


def spell_out(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with every ``nn.LayerNorm`` in it spelled out."""
    result = copy.deepcopy(module)
    for parent in list(result.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, SpelledOutLayerNorm(child))
    return result
