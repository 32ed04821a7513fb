"""Random torch modules around BatchNorms, in float64, for what torch.export makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from tests.passes.fold_checks import randomise_norms

COUNT, WIDTH, BATCH = 4, 4, 2  # as many tokens as channels
Call = Callable[[torch.Tensor], torch.Tensor]


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class OnLast(nn.Module):
    """A module of the channels-first kind on values with their channels last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.transpose(1, -1)).transpose(1, -1)


class RepBN(nn.Module):
    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn
        self.alpha = nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x) + self.alpha * x


class Scale(nn.Module):
    """LayerScale, or a constant that is added."""

    def __init__(self, *shape: int, add: bool = False) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(shape))
        self.add = add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.constant if self.add else x * self.constant


class ClassToken(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    """Two heads, with the queries, keys and values in one weight."""

    def __init__(self, width: int, qkv: nn.Module, proj: nn.Module, how: str) -> None:
        super().__init__()
        self.width, self.qkv, self.proj, self.how = width, qkv, proj, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n = x.shape[:2]
        if self.how == "unbind":
            packed = self.qkv(x).reshape(b, n, 3, 2, self.width // 2).permute(2, 0, 3, 1, 4)
            q, k, v = packed.unbind(0)
        else:
            heads = (b, n, 2, self.width // 2)
            q, k, v = (p.view(heads).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.width))


class TwoResults(nn.Module):
    """Ends in the last value and in one from within."""

    def __init__(self, steps: Sequence[nn.Module], inner: int | None) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.append(step(values[-1]))
        return values[-1] if self.inner is None else (values[-1], values[self.inner])


@dataclass
class Builder:
    """Draws steps that fit one another; ``sizes`` are those behind the last one, batch excluded."""

    draw: st.DrawFn
    sizes: tuple[int, ...]
    steps: list[nn.Module] = field(default_factory=list)
    stored: dict[Any, list[nn.Module]] = field(default_factory=dict)

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def shared(self, key: Any, make: Callable[[], nn.Module]) -> nn.Module:
        """A new module, or now and then one that is used already."""
        known = self.stored.setdefault(key, [])
        if known and self.pick(0, 0, 1):
            return self.pick(*known)
        known.append(make())
        return known[-1]

    def linear(self, size: int, to: int) -> nn.Module:
        bias = self.pick(True, False)
        return self.shared(("linear", size, to, bias), lambda: nn.Linear(size, to, bias))

    def batch_norm(self, size: int, rank: int) -> nn.Module:
        """For inputs of ``rank``; of its kinds, one takes the batch's statistics."""
        options = {"affine": self.pick(True, True, False)}
        options["track_running_stats"] = self.pick(*[True] * 9, False)
        kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
        bn = self.shared((kind, size), lambda: kind(size, **options))
        return RepBN(bn) if self.pick(0, 0, 1) else bn

    def norm(self, sizes: tuple[int, ...]) -> nn.Module:
        rank = len(sizes) + 1
        last = rank > 2 and self.pick(True, True, False)
        norm = self.batch_norm(sizes[-1 if last else 0], rank)
        return OnLast(norm) if last else norm

    def block(self, sizes: tuple[int, ...]) -> list[nn.Module]:
        """Pre-norm, post-norm, or a norm inside."""
        width, where = sizes[-1], self.pick("before", "inside", "behind", "none")
        if len(sizes) == 2 and width % 2 == 0 and self.pick(True, False):
            qkv, proj = self.linear(width, 3 * width), self.linear(width, width)
            inner = [Attention(width, qkv, proj, self.pick("unbind", "chunk"))]
        else:
            inner = [self.linear(width, 2 * width), nn.GELU(), self.linear(2 * width, width)]
            if where == "inside":
                inner.insert(1, self.norm((*sizes[:-1], 2 * width)))
        if where == "before":
            inner.insert(0, self.norm(sizes))
        sum_ = Residual(nn.Sequential(*inner, *[Scale(width)] * self.pick(0, 1)))
        return [sum_, self.norm(sizes)] if where == "behind" else [sum_]

    def step(self) -> None:
        sizes, width = self.sizes, self.sizes[-1]
        kinds = ["norm", "linear", "scale", "activation", "same"]
        kinds += ["norm_linear", "linear_norm"] * 3 + ["block"] * 2
        kinds += {1: [], 2: ["token", "cat", "mean", "heads", "swap"], 3: ["conv", "flatten"]}[
            len(sizes)
        ]
        kind = self.pick(*kinds)
        steps: list[nn.Module] = []
        if kind == "norm":
            steps = [self.norm(sizes)]
        elif kind == "linear":
            to = self.pick(WIDTH, 6)
            steps, self.sizes = [self.linear(width, to)], (*sizes[:-1], to)
        elif kind == "norm_linear":
            steps = [self.norm(sizes), self.linear(width, width)]
        elif kind == "linear_norm":
            steps = [self.linear(width, width), self.norm(sizes)]
        elif kind == "block":
            steps = self.block(sizes)
        elif kind == "scale":
            steps = [Scale(width, add=self.pick(True, False))]
        elif kind == "activation":
            steps = [self.pick(nn.GELU, nn.ReLU, lambda: nn.Softmax(-1))()]
        elif kind == "same":
            steps = [self.pick(nn.Identity, nn.Dropout, lambda: Apply(torch.clone))()]
        elif kind == "token":
            index = self.pick(0, -1)
            steps, self.sizes = [Apply(lambda x: x[:, index])], sizes[1:]
        elif kind == "cat":
            steps, self.sizes = [ClassToken(width)], (sizes[0] + 1, width)
        elif kind == "mean":
            axis = self.pick(1, 1, 2)
            steps, self.sizes = [Apply(lambda x: x.mean(axis))], (sizes[2 - axis],)
        elif kind == "heads":
            steps = [Apply(lambda x: x.reshape(-1, x.shape[-1]).reshape(x.shape))]
        elif kind == "swap":
            steps, self.sizes = [Apply(lambda x: x.transpose(1, 2))], sizes[::-1]
        elif kind == "conv":
            size, pad = self.pick((1, 0), (2, 0), (3, 1))
            group = self.pick(1, 1, 2) if sizes[0] % 2 == 0 else 1
            steps = [nn.Conv2d(sizes[0], WIDTH, size, padding=pad, groups=group)]
            self.sizes = (WIDTH, *[n + 2 * pad - size + 1 for n in sizes[1:]])
            if min(self.sizes) < 1:
                steps, self.sizes = [], sizes
        elif kind == "flatten":
            steps = [Apply(lambda x: x.flatten(2).transpose(1, 2))]
            self.sizes = (sizes[1] * sizes[2], sizes[0])
        self.steps += steps


@dataclass(frozen=True)
class Built:
    module: nn.Module
    x: torch.Tensor


@st.composite
def fold_modules(draw: st.DrawFn) -> Built:
    """A module of up to eight steps with a BatchNorm among them, and its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = draw(st.sampled_from([(COUNT, WIDTH), (COUNT, WIDTH), (3, 4, 4), (WIDTH,)]))
        builder = Builder(draw, sizes)
        for _ in range(draw(st.integers(1, 7))):
            builder.step()
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for s in builder.steps
                   for m in s.modules()):  # fmt: skip
            builder.steps.append(builder.norm(builder.sizes))
        if draw(st.booleans()):
            builder.steps.append(builder.linear(builder.sizes[-1], 3))
        count = len(builder.steps)
        inner = draw(st.sampled_from([None] * 4 + list(range(1, count))))
        module = TwoResults(builder.steps, inner).double().eval()
        randomise_norms(module)
        return Built(module, torch.randn((BATCH, *sizes), dtype=torch.float64))
