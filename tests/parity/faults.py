"""Faults planted in the small CLIP of victim.py, and where each of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tests.parity.victim import EOS, WIDTH, Clip


@dataclass(frozen=True)
class Fault:
    """``plant`` changes a Clip; ``sites``: the names that a bisection may give the place;
    ``structure``: whether more than weights changes."""

    name: str
    plant: Callable[[Clip], None]
    sites: tuple[str, ...]
    structure: bool


FAULTS: list[Fault] = []


def fault(*sites: str, structure: bool = False) -> Callable[[Callable[[Clip], None]], None]:
    def register(plant: Callable[[Clip], None]) -> None:
        FAULTS.append(Fault(plant.__name__, plant, sites, structure))

    return register


class Norm(nn.LayerNorm):
    """A LayerNorm to be got wrong in ``statistics``; takes the parameters of another one."""

    def __init__(self, right: nn.Module) -> None:
        assert isinstance(right, nn.LayerNorm)
        super().__init__(WIDTH, right.eps)
        self.load_state_dict(right.state_dict())

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normal(x) * self.weight + self.bias


class Unbiased(Norm):
    def normal(self, x: torch.Tensor) -> torch.Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / torch.sqrt((d * d).sum(-1, keepdim=True) / (x.shape[-1] - 1) + self.eps)


class OverTokens(Norm):
    def normal(self, x: torch.Tensor) -> torch.Tensor:
        d = x - x.mean(1, keepdim=True)
        return d / torch.sqrt((d * d).mean(1, keepdim=True) + self.eps)


class OnePass(Norm):
    """E[x^2] - E[x]^2 cancels at large means."""

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / torch.sqrt(variance.clamp(min=0) + self.eps)


class WithoutMean(Norm):
    def normal(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)


class OutsideTheRoot(Norm):
    def normal(self, x: torch.Tensor) -> torch.Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / (torch.sqrt((d * d).mean(-1, keepdim=True)) + self.eps)


class Leak(Norm):
    """A little of the batch's first sample in all of them: nothing at batch 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.LayerNorm.forward(self, x + 1e-4 * (x[:1] - x))


class Through(nn.Module):
    """A linear layer whose input goes through ``change`` first."""

    def __init__(self, inner: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.change(x))


def rows(weight: torch.Tensor, order: list[int], size: int) -> torch.Tensor:
    """``weight`` with its groups of ``size`` rows in another order."""
    return weight.reshape(len(order), size, *weight.shape[1:])[order].reshape(weight.shape)


@fault("visual.blocks.1.norm1")
def epsilon_ten_times_smaller(clip: Clip) -> None:
    clip.visual.blocks[1].norm1.eps = 1e-6


# Weight-only capture keeps constants: another epsilon is another structure.
FAULTS[-1] = Fault(FAULTS[-1].name, FAULTS[-1].plant, FAULTS[-1].sites, True)


@fault("text.blocks.0.norm2", structure=True)
def epsilon_1e_3(clip: Clip) -> None:
    clip.text.blocks[0].norm2.eps = 1e-3


@fault("visual.norm_pre", structure=True)
def epsilon_rounded_to_zero(clip: Clip) -> None:
    clip.visual.norm_pre.eps = 0.0


@fault("visual.norm", structure=True)
def epsilon_outside_the_root(clip: Clip) -> None:
    clip.visual.norm = OutsideTheRoot(clip.visual.norm)


@fault("visual.blocks.0.norm2")
def dropped_beta(clip: Clip) -> None:
    clip.visual.blocks[0].norm2.bias.data.zero_()


@fault("text.norm_final")
def dropped_gamma(clip: Clip) -> None:
    clip.text.norm_final.weight.data.fill_(1)


@fault("visual.blocks.0.norm1")
def gamma_of_the_neighbour(clip: Clip) -> None:
    first, second = clip.visual.blocks[0].norm1, clip.visual.blocks[1].norm1
    first.weight.data, second.weight.data = second.weight.data, first.weight.data


@fault("text.blocks.1.norm1")
def one_gamma_off_by_a_thousandth(clip: Clip) -> None:
    clip.text.blocks[1].norm1.weight.data[5] *= 1.001


@fault("visual.blocks.1.norm2", structure=True)
def unbiased_variance(clip: Clip) -> None:
    clip.visual.blocks[1].norm2 = Unbiased(clip.visual.blocks[1].norm2)


@fault("visual.blocks.1.norm2", structure=True)
def wrong_axis(clip: Clip) -> None:
    clip.visual.blocks[1].norm2 = OverTokens(clip.visual.blocks[1].norm2)


@fault("visual.norm_pre", structure=True)
def only_at_large_means(clip: Clip) -> None:
    clip.visual.norm_pre = OnePass(clip.visual.norm_pre)


@fault("text.blocks.1.norm2", structure=True)
def mean_left_in(clip: Clip) -> None:
    clip.text.blocks[1].norm2 = WithoutMean(clip.text.blocks[1].norm2)


@fault("visual.blocks.0.norm1", structure=True)
def only_above_batch_one(clip: Clip) -> None:
    clip.visual.blocks[0].norm1 = Leak(clip.visual.blocks[0].norm1)


@fault("visual")
def one_position_wrong(clip: Clip) -> None:
    clip.visual.pos.data[0, 3, 7] += 0.01


@fault("visual")
def class_token_of_another(clip: Clip) -> None:
    clip.visual.cls.data.neg_()


@fault("visual", structure=True)
def patches_in_another_order(clip: Clip) -> None:
    vision = clip.visual
    vision.patches = lambda x: vision.patch(x).transpose(2, 3).flatten(2).transpose(1, 2)


@fault("visual.blocks.1.attn", "visual.blocks.1.attn.qkv")
def queries_and_keys_swapped(clip: Clip) -> None:
    qkv = clip.visual.blocks[1].attn.qkv
    qkv.weight.data = rows(qkv.weight.data, [1, 0, 2], WIDTH)
    qkv.bias.data = rows(qkv.bias.data, [1, 0, 2], WIDTH)


@fault("text.blocks.0.attn", "text.blocks.0.attn.qkv")
def heads_of_the_values_swapped(clip: Clip) -> None:
    qkv = clip.text.blocks[0].attn.qkv
    qkv.weight.data = rows(qkv.weight.data, [0, 1, 2, 3, 5, 4], WIDTH // 2)
    qkv.bias.data = rows(qkv.bias.data, [0, 1, 2, 3, 5, 4], WIDTH // 2)


@fault("visual.blocks.0.attn.proj")
def transposed_square_weight(clip: Clip) -> None:
    proj = clip.visual.blocks[0].attn.proj
    proj.weight.data = proj.weight.data.T.contiguous()


@fault("text.blocks.1.fc1")
def dropped_bias(clip: Clip) -> None:
    clip.text.blocks[1].fc1.bias.data.zero_()


@fault("visual.blocks.0.fc2")
def weight_rounded_to_half(clip: Clip) -> None:
    fc2 = clip.visual.blocks[0].fc2
    fc2.weight.data = fc2.weight.data.half().float()


@fault("visual.proj")
def rows_of_the_head_swapped(clip: Clip) -> None:
    proj = clip.visual.proj
    proj.weight.data[[2, 3]] = proj.weight.data[[3, 2]]


@fault("visual.proj")
def output_all_zero(clip: Clip) -> None:
    clip.visual.proj.weight.data.zero_()


@fault("visual.blocks.1.act", structure=True)
def another_activation(clip: Clip) -> None:
    clip.visual.blocks[1].act = nn.GELU(approximate="tanh")


@fault("text.blocks.1.attn", structure=True)
def attention_not_scaled(clip: Clip) -> None:
    clip.text.blocks[1].attn.scale = 1.0


@fault("text.blocks.0.attn", structure=True)
def causal_mask_lost(clip: Clip) -> None:
    clip.text.blocks[0].attn.causal = False


@fault("visual.blocks.1", structure=True)
def residual_lost(clip: Clip) -> None:
    block = clip.visual.blocks[1]
    block.forward = lambda x: block.fc2(
        block.act(block.fc1(block.norm2(x + block.attn(block.norm1(x)))))
    )


@fault("visual.blocks.1.fc2", "visual.blocks.1.act", structure=True)
def overflow_of_half_precision(clip: Clip) -> None:
    block = clip.visual.blocks[1]
    block.fc2 = Through(block.fc2, lambda x: (x * 2.0**14).half().float() * 2.0**-14)


@fault("visual.patch", structure=True)
def clipped_where_inputs_are_large(clip: Clip) -> None:
    clip.visual.patch = Through(clip.visual.patch, lambda x: x.clamp(-50, 50))


@fault("text", structure=True)
def end_of_text_at_the_last_position(clip: Clip) -> None:
    clip.text.end = lambda ids: torch.full_like(ids[:, 0], ids.shape[1] - 1)


@fault("text.token")
def only_on_the_end_of_text_row(clip: Clip) -> None:
    clip.text.token.weight.data[EOS] *= 1.01
