"""Models of torch's own layers, for what the libraries' architectures lack."""

from __future__ import annotations

import torch
from torch import nn

from normswap.demo.spelled_out import spell_out
from tests.zoo.model import Builder, ZooModel, images
from tests.zoo.timm_models import timm_vit
from tests.zoo.truth import RoleTable


def spelled_vit() -> ZooModel:
    """timm's ViT with its LayerNorms spelled out in elementary operators."""
    zoo = timm_vit()
    zoo.name, zoo.module = "spelled_vit", spell_out(zoo.module)
    return zoo


class _Encoder(nn.Module):
    """A ViT of ``nn.TransformerEncoderLayer``s: ``stem`` gives the grid of tokens."""

    def __init__(self, stem: nn.Module, width: int, norm_first: bool) -> None:
        super().__init__()
        self.stem = stem
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, 0.0, "gelu", batch_first=True, norm_first=norm_first
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1) + self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens)
        logits: torch.Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


def _zoo(name: str, module: nn.Module, roles: RoleTable) -> ZooModel:
    return ZooModel(name, module, {"x": images(3, 16)}, ("logits",), roles, image="x")


def torch_post_norm() -> ZooModel:
    module = _Encoder(nn.Conv2d(3, 32, 4, 4), 32, norm_first=False)
    roles = (("layers.*.norm1", "post_attention"), ("layers.*.norm2", "post_mlp"))
    return _zoo("torch_post_norm", module, roles)


def torch_conv_stem() -> ZooModel:
    """Convolutions with the norms of convolutional networks before a pre-norm encoder.

    Those norms follow an activation: behind a convolution, exporters would fold BatchNorm into it.
    """
    stem = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 3, 1, 1),
        nn.ReLU(),
        nn.GroupNorm(3, 12),
        nn.Conv2d(12, 16, 3, 1, 1),
        nn.ReLU(),
        nn.InstanceNorm2d(16, affine=True),
        nn.Conv2d(16, 32, 2, 2),
    )
    roles = (
        ("stem.*", "other"),
        ("layers.*.norm1", "pre_attention"),
        ("layers.*.norm2", "pre_mlp"),
        ("norm", "final"),
    )
    return _zoo("torch_conv_stem", _Encoder(stem, 32, norm_first=True), roles)


BUILDERS: dict[str, Builder] = {
    "torch_post_norm": torch_post_norm,
    "torch_conv_stem": torch_conv_stem,
}
