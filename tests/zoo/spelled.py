"""LayerNorm modules that spell the formula out, as much user code does."""

from __future__ import annotations

import copy

import torch
from torch import nn


class SpelledOutLayerNorm(nn.Module):
    """(x - E[x]) / sqrt(E[(x - E[x])^2] + eps) * weight + bias over the last axis."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias


def spell_out(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with every nn.LayerNorm spelled out."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, SpelledOutLayerNorm(child))
    return module
