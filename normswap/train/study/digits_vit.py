"""The default of ``compare``: an untrained ViT on scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normswap.assets import digits
from normswap.io.data import Data
from normswap.io.sources import Source, example_images
from normswap.io.sources.packages import import_extra
from normswap.io.torch_model import model_from_source
from normswap.model import Model

IMAGES, LOGITS = "pixel_values", "logits"
WIDTH, DEPTH, HEADS = 32, 6, 4
# 0.02, the usual one, is for widths of 200 and up: this narrow it takes ten times as many steps.
_INITIAL_STD = 0.1


def digits_vit(seed: int) -> Model:
    """transformers' ViTForImageClassification for 8x8 digits with random weights of ``seed``.

    Patch 2, so 16 patches and a class token; pre-norm, LayerNorm; input ``pixel_values`` float32
    [N, 1, 8, 8], output ``logits`` [N, 10]. Raises NormswapError without transformers.
    """
    transformers: Any = import_extra("transformers", "normswap compare without MODEL")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        encoder_stride=2,
        num_channels=1,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=_INITIAL_STD,
        num_labels=len(digits.WORDS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _Logits(transformers.ViTForImageClassification(config))
    images = example_images(1, 8, 8, torch.float32)
    axes = {IMAGES: {0: "batch"}}
    name = f"a ViT of width {WIDTH} and depth {DEPTH} on 8x8 digits"
    return model_from_source(Source(name, module, (images,), {}, axes, (LOGITS,)))


def digits_data() -> tuple[Data, Data]:
    """The 1257 training and 540 test images with their labels.

    Raises NormswapError without scikit-learn.
    """
    data = digits.load_digits_split()
    train = Data({IMAGES: data.train_images}, data.train_labels)
    return train, Data({IMAGES: data.test_images}, data.test_labels)


class _Logits(nn.Module):
    """Returns the scores alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.vit = inner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.vit(pixel_values=pixel_values).logits
        return logits
