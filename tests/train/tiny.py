"""A transformer of two blocks that trains in a second, and its data."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import normswap as ns
from normswap.graph.graph import Array
from normswap.model import Model

TOKENS, WIDTH, CLASSES = 5, 12, 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / WIDTH**0.5).softmax(-1)
        return self.out(weights @ self.v(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def inputs(count: int) -> Array:
    """Rows of sizes that differ, so that LayerNorm is no affine map."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, TOKENS, WIDTH)) * random.uniform(0.5, 2, (count, TOKENS, 1))
    return np.asarray(x + 0.3, np.float32)


def teacher() -> Model:
    torch.manual_seed(0)
    module = Tiny()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return ns.load(module, example_inputs=(torch.from_numpy(inputs(4)),))


def student(original: Model, ffn_batchnorm: bool = False) -> Model:
    how = ns.BatchNorm(fit="least-squares", ffn_batchnorm=ffn_batchnorm)
    return ns.swap(original, how, data=inputs(128)).model
