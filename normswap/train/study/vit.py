"""The small ViTs that comparisons train where no model is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normswap.io.sources import Source, example_images
from normswap.io.sources.packages import import_extra
from normswap.io.torch_model import model_from_source
from normswap.model import Model

IMAGES, LOGITS = "pixel_values", "logits"


@dataclass(frozen=True)
class VitShape:
    """``size``: of a grey image's sides; ``patch``: of a patch's, in pixels. ``initial_std``: of
    all matrices, ``position_std`` of the position embeddings."""

    size: int
    patch: int
    width: int
    depth: int
    heads: int
    classes: int
    initial_std: float
    position_std: float

    @property
    def name(self) -> str:
        sizes = f"width {self.width}, depth {self.depth} and patch {self.patch}"
        return f"a ViT of {sizes} on {self.size}x{self.size}"


def digits_shape() -> VitShape:
    """16 patches of a scikit-learn digit, and the class token. An initial deviation of 0.02, the
    usual one, takes ten times as many steps at this width."""
    return VitShape(
        size=8, patch=2, width=32, depth=6, heads=4, classes=10, initial_std=0.1, position_std=0.1
    )


def deit_shape(width: int, patch: int, classes: int) -> VitShape:
    """As deep as DeiT (Touvron et al., 2021), at width 192 its tiny one; the patches of a glyph
    and the class token.

    It starts from more than DeiT's deviations of 0.02, from which LN had hardly left guessing after
    200 steps of 32: a network that is all but linear takes a mean over the patches, and where they
    lie is lost. From these it had after 120 of 16.
    """
    heads = max(1, width // 64) if width >= 192 else max(1, width // 32)
    return VitShape(32, patch, width, 12, heads, classes, initial_std=0.05, position_std=0.5)


def vit(shape: VitShape, seed: int, what: str) -> Model:
    """transformers' ViTForImageClassification with random weights of ``seed``; ``what`` it is for,
    to stand in its name.

    Pre-norm, LayerNorm; input ``pixel_values`` float32 [N, 1, size, size], output ``logits``
    [N, classes]. Raises NormswapError without transformers.
    """
    transformers: Any = import_extra("transformers", "normswap compare without MODEL", "demo")
    config = transformers.ViTConfig(
        image_size=shape.size,
        patch_size=shape.patch,
        encoder_stride=shape.patch,
        num_channels=1,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=shape.initial_std,
        num_labels=shape.classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        inner.vit.embeddings.position_embeddings.mul_(shape.position_std / shape.initial_std)
    module = _Logits(inner)
    images = example_images(1, shape.size, shape.size, torch.float32)
    axes = {IMAGES: {0: "batch"}}
    name = f"{shape.name} {what}"
    return model_from_source(Source(name, module, (images,), {}, axes, (LOGITS,)))


class _Logits(nn.Module):
    """Returns the scores alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.vit = inner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.vit(pixel_values=pixel_values).logits
        return logits
