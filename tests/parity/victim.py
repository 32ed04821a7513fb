"""A small CLIP that is easy to get wrong: square weights, as many tokens as heads have channels."""

from __future__ import annotations

import torch
from torch import nn

WIDTH, HEADS, LENGTH, WORDS = 16, 2, 8, 32
EOS = WORDS - 1


class Attention(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.causal, self.scale = causal, (WIDTH // HEADS) ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.shape[1]
        parts = self.qkv(x).reshape(-1, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        scores = q @ k.transpose(-2, -1) * self.scale
        if self.causal:
            scores = scores + torch.full((tokens, tokens), -1e9).triu(1)
        mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(-1, tokens, WIDTH))


class Block(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention(causal)
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.norm_pre, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def patches(self, x: torch.Tensor) -> torch.Tensor:
        return self.patch(x).flatten(2).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = self.blocks(self.norm_pre(x))
        return self.proj(self.norm(x)[:, 0])


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(WORDS, WIDTH)
        self.pos = nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.blocks = nn.Sequential(Block(causal=True), Block(causal=True))
        self.norm_final = nn.LayerNorm(WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def end(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.argmax(-1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm_final(self.blocks(self.token(ids) + self.pos))
        index = self.end(ids)[:, None, None].expand(-1, 1, WIDTH)
        return self.proj(x.gather(1, index)[:, 0])


class Clip(nn.Module):
    """Images [N, 3, 8, 8] and token ids [N, 8] to two embeddings [N, 16]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.visual, self.text = Vision(), Text()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.visual(image), self.text(ids)


def example_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, EOS, (2, LENGTH), generator=generator)
    ids[0, 3:], ids[1, 6:] = 0, 0
    ids[0, 3], ids[1, 6] = EOS, EOS
    return {"image": torch.randn(2, 3, 8, 8, generator=generator), "ids": ids}
