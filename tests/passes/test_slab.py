"""SLAB's models (ICML 2024) fold completely, with no code written for either.

RepBN is BN(x) + alpha * x. The blocks are written as in SLAB's classification/models of DeiT and
Swin, tiny: RepBN in place of each norm, and its simplified linear attention in the DeiT.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.graph.graph import Graph
from tests.effort import ALL
from tests.passes.fold_checks import captured, check_fold


class RepBN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(0.5 + torch.rand(1))
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        x = self.bn(x) + self.alpha * x
        return x.transpose(1, 2)


class LinearAttention(nn.Module):
    """SLAB's: ReLU on queries and keys, and a depthwise convolution of the values' grid."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.dwc = nn.Conv1d(dim // heads, dim // heads, 3, padding=1, groups=dim // heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        d = c // self.heads
        q, k, v = self.qkv(x).reshape(b, n, 3, c).permute(2, 0, 1, 3).unbind(0)
        q, k = torch.relu(q), torch.relu(k)
        q, k, v = (t.reshape(b, n, self.heads, d).transpose(1, 2) for t in (q, k, v))
        z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
        y = q @ ((k.transpose(-2, -1) * n**-0.5) @ (v * n**-0.5)) * z
        grid = self.dwc(v.reshape(b * self.heads, n, d).transpose(1, 2))
        y = y.transpose(1, 2).reshape(b, n, c)
        return self.proj(y + grid.transpose(1, 2).reshape(b, n, c))


class Attention(nn.Module):
    """Softmax attention; within windows with a relative position bias and a mask."""

    def __init__(self, dim: int, heads: int, window: int = 0) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        if window:
            self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
            at = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
            apart = at[:, :, None] - at[:, None] + window - 1
            self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        a = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if self.window:
            a = a + self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            a = a.view(-1, windows, self.heads, n, n) + mask[:, None]
            a = a.view(-1, self.heads, n, n)
        return self.proj((a.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class Block(nn.Module):
    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = RepBN(dim), attention
        self.norm2, self.mlp = RepBN(dim), Mlp(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DeiT(nn.Module):
    def __init__(self, linear: bool, dim: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim))
        kind = LinearAttention if linear else Attention
        self.blocks = nn.Sequential(*(Block(dim, kind(dim, 2)) for _ in range(2)))
        self.norm, self.head = RepBN(dim), nn.Linear(dim, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def _windows(x: torch.Tensor, size: int) -> torch.Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, c)


class SwinBlock(Block):
    def __init__(self, dim: int, grid: int, window: int, shift: int) -> None:
        super().__init__(dim, Attention(dim, 2, window))
        self.grid, self.window, self.shift = grid, window, shift
        regions = torch.zeros(1, grid, grid, 1)
        parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in parts for c in parts):
            regions[:, rows, columns] = number
        ids = _windows(regions, window)[..., 0]
        apart = (ids[:, None] - ids[:, :, None]) != 0
        self.register_buffer("mask", apart.float() * -100.0 if shift else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        g, w, s = self.grid, self.window, self.shift
        h = self.norm1(x).view(b, g, g, c)
        h = torch.roll(h, (-s, -s), (1, 2)) if s else h
        h = self.attn(_windows(h, w), self.mask).view(-1, g // w, g // w, w, w, c)
        h = h.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, g, g, c)
        h = torch.roll(h, (s, s), (1, 2)) if s else h
        x = x + h.view(b, n, c)
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm, self.reduction = RepBN(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, c = x.shape
        x = x.view(b, self.grid, self.grid, c)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x.view(b, -1, 4 * c)))


class Swin(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.patch_embed, self.patch_norm = nn.Conv2d(3, dim, 2, 2), RepBN(dim)
        self.layers = nn.Sequential(
            SwinBlock(dim, 8, 4, 0), SwinBlock(dim, 8, 4, 2), Merging(dim, 8),
            SwinBlock(2 * dim, 4, 4, 0),
        )  # fmt: skip
        self.norm, self.head = RepBN(2 * dim), nn.Linear(2 * dim, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        x = self.norm(self.layers(x))
        return self.head(x.transpose(1, 2).mean(2))


MODELS = {
    "deit": (lambda: DeiT(linear=False), (2, 3, 16, 16), 5),
    "deit_linear_attention": (lambda: DeiT(linear=True), (2, 3, 16, 16), 5),
    "swin": (Swin, (2, 3, 16, 16), 9),
}


def _operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


@pytest.mark.parametrize("kind", ["fx", "dynamo"] if ALL else ["fx"])
@pytest.mark.parametrize("name", MODELS)
def test_every_rep_bn_disappears(name: str, kind: str) -> None:
    """Neither a norm nor a product with alpha is left, nor what a RepBN adds up."""
    build, shape, norms = MODELS[name]
    torch.manual_seed(0)
    model = captured(build(), torch.randn(shape), kind)
    feeds = {key: np.asarray(array) for key, array in model.examples.items()}
    result = check_fold(model, feeds)
    assert not result.skipped
    assert sum(site.kind == "batch_norm" for site in result.done) == norms
    assert not ns.locate(result.model)
    before, after = _operators(model.graph), _operators(result.model.graph)
    assert after["Mul"] == before["Mul"] - norms
    gained = before["MatMul"] + before["Gemm"] + before["Linear"]  # biases of those without one
    assert after["Add"] <= before["Add"] - norms + (gained if kind == "dynamo" else 0)
