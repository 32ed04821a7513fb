"""A LayerNorm that becomes a BatchNorm bit by bit while it is trained.

y = lambda * LN(x) + (1 - lambda) * BN(x) with lambda from 1 to 0, as SLAB does (Guo et al., ICML
2024); its RepBN(x) = BN(x) + alpha * x is a BatchNorm too, once alpha is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.graph.fx.module_tree import get_path, put_module
from normswap.graph.graph import Array
from normswap.norms.site import Site
from normswap.train.batch_norms import BatchNorm
from normswap.train.tapered import TaperedScale


class ProgressiveNorm(nn.Module):
    """Channels lie on axis 1, as in the ``batch_norm`` that it stands for; shape and dtype stay.

    ``share``: lambda. ``weight`` and ``bias`` [C] are the LayerNorm's. ``alpha``: RepBN's, a number
    that is trained; None for a plain BatchNorm.
    """

    def __init__(
        self,
        batch_norm: nn.Module,
        weight: torch.Tensor,
        bias: torch.Tensor,
        epsilon: float,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.epsilon = epsilon
        self.alpha = nn.Parameter(weight.new_zeros(())) if residual else None
        self.share = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.batch_norm(x)
        if self.alpha is not None:
            y = y + self.alpha * x
        last = x.movedim(1, -1)
        normed = nn.functional.layer_norm(
            last, last.shape[-1:], self.weight, self.bias, self.epsilon
        )
        return torch.lerp(y, normed.movedim(-1, 1).to(y.dtype), self.share)


@dataclass(frozen=True)
class LayerNormOf:
    """What a LayerNorm over the channels computes with: gamma and beta [C] (None: 1 and 0)."""

    weight: Array | None
    bias: Array | None
    epsilon: float

    @classmethod
    def at(cls, site: Site) -> LayerNormOf:
        return cls(site.weight, site.bias, site.epsilon)


def make_progressive(
    module: nn.Module, norms: Mapping[str, LayerNormOf], residual: bool = False
) -> list[ProgressiveNorm]:
    """Puts a ProgressiveNorm in place of each BatchNorm at the paths in ``norms``.

    ``residual``: RepBN. Raises NormswapError for a path without a BatchNorm of that many channels.
    """
    made = []
    for path, norm in norms.items():
        try:
            batch_norm = get_path(module, path)
        except AttributeError:
            batch_norm = None
        channels = getattr(batch_norm, "num_features", None)
        wanted = next((len(a) for a in (norm.weight, norm.bias) if a is not None), channels)
        if not isinstance(batch_norm, BatchNorm) or channels != wanted:
            raise NormswapError(f"'{path}': is no BatchNorm of {wanted} channels to go over to")
        like = batch_norm.running_mean
        assert like is not None
        assert channels is not None

        def tensor(array: Array | None, neutral: float, like: torch.Tensor = like) -> torch.Tensor:
            array = np.full(len(like), neutral) if array is None else array
            return torch.tensor(array.reshape(-1), dtype=like.dtype, device=like.device)

        new = ProgressiveNorm(
            batch_norm, tensor(norm.weight, 1.0), tensor(norm.bias, 0.0), norm.epsilon, residual
        )
        put_module(module, path, new)
        made.append(new)
    return made


def set_share(module: nn.Module, share: float) -> None:
    """Sets lambda, and the share of tapered scales, everywhere."""
    for child in module.modules():
        if isinstance(child, ProgressiveNorm | TaperedScale):
            child.share = share


def share_at(step: int, steps: int, until: float = 0.5) -> float:
    """Lambda at a step: it falls from 1 to 0 in the first ``until`` of all steps, linearly."""
    return max(0.0, 1.0 - step / max(until * steps, 1.0))


@torch.no_grad()
def collapse(module: nn.Module) -> None:
    """Every ProgressiveNorm becomes the BatchNorm that it is at lambda 0, exactly.

    BN(x) + alpha * x has gamma' = gamma + alpha * sqrt(var + eps) and beta' = beta + alpha * mean.
    """
    for path, child in list(module.named_modules()):
        if not isinstance(child, ProgressiveNorm):
            continue
        norm = child.batch_norm
        assert isinstance(norm, BatchNorm)
        assert norm.running_mean is not None
        if child.alpha is not None:
            alpha, mean = child.alpha.double(), norm.running_mean.double()
            deviation = (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
            norm.weight.add_((alpha * deviation).to(norm.weight.dtype))
            norm.bias.add_((alpha * mean).to(norm.bias.dtype))
        put_module(module, path, norm)
