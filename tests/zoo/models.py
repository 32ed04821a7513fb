"""Tiny configurations of models that others wrote, with weights that are not at their defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normswap.demo.spelled_out import spell_out
from normswap.io.torchvision_compat import ensure_torchvision_importable

ensure_torchvision_importable()

PRE_NORM_BLOCKS = 2


@dataclass
class ZooModel:
    """A module in evaluation mode with example inputs; ``image``: the name of its image input."""

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    image: str
    image_sites: int
    text_sites: int = 0
    roles: dict[str, str] = field(default_factory=dict)


def build(name: str) -> ZooModel:
    """The zoo's model called ``name``, the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]()
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.module.eval()
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    return model


def _images(channels: int, size: int) -> torch.Tensor:
    return torch.randn(2, channels, size, size)


def timm_vit() -> ZooModel:
    import timm

    module = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8)
    roles = {"blocks.0.norm1": "pre_attention", "blocks.1.norm2": "pre_mlp", "norm": "final"}
    return ZooModel("timm_vit", module, {"x": _images(3, 32)}, ("logits",), "x", 5, 0, roles)


def spelled_vit() -> ZooModel:
    """timm's ViT with its LayerNorms spelled out in elementary operators."""
    model = timm_vit()
    return ZooModel(
        "spelled_vit", spell_out(model.module), model.inputs, model.outputs, "x", 5, 0, model.roles
    )


def open_clip_clip() -> ZooModel:
    import open_clip

    module = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "patch_size": 4, "layers": 2, "width": 64, "head_width": 16},
        text_cfg={"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
    )
    roles = {
        "visual.ln_pre": "embedding",
        "visual.transformer.resblocks.0.ln_1": "pre_attention",
        "visual.transformer.resblocks.1.ln_2": "pre_mlp",
        "visual.ln_post": "final",
        "transformer.resblocks.0.ln_1": "pre_attention",
        "ln_final": "final",
    }
    inputs = {"image": _images(3, 16), "text": _token_ids(3, 12, 50)}
    outputs = ("image_features", "text_features", "logit_scale")
    return ZooModel("open_clip_clip", module, inputs, outputs, "image", 6, 5, roles)


def hf_clip() -> ZooModel:
    import transformers

    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={
            **tower,
            "vocab_size": 50,
            "max_position_embeddings": 12,
            "eos_token_id": 49,
            "bos_token_id": 48,
        },
        vision_config={**tower, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    )
    module = _Outputs(
        transformers.CLIPModel(config), ("logits_per_image", "text_embeds", "image_embeds")
    )
    roles = {
        "vision_model.pre_layrnorm": "embedding",
        "vision_model.encoder.layers.0.layer_norm1": "pre_attention",
        "vision_model.encoder.layers.1.layer_norm2": "pre_mlp",
        "vision_model.post_layernorm": "final",
        "text_model.final_layer_norm": "final",
    }
    ids = _token_ids(3, 12, 50)
    inputs = {
        "pixel_values": _images(3, 16),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }
    return ZooModel("hf_clip", module, inputs, module.names, "pixel_values", 6, 5, roles)


def hf_vit() -> ZooModel:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    module = _Outputs(transformers.ViTForImageClassification(config), ("logits",))
    roles = {"vit.layers.0.layernorm_before": "pre_attention", "vit.layernorm": "final"}
    inputs = {"pixel_values": _images(1, 8)}
    return ZooModel("hf_vit", module, inputs, ("logits",), "pixel_values", 5, 0, roles)


class _Outputs(nn.Module):
    """A transformers model with plain tensors in and out."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name, child in model.named_children():  # keeps the parameter names as they are
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.__dict__["model"] = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        given = {k: v for k, v in given.items() if v is not None}
        result = self.__dict__["model"](pixel_values=pixel_values, **given)
        return tuple(result[name] for name in self.names)


def _token_ids(count: int, length: int, vocabulary: int) -> torch.Tensor:
    ids = torch.randint(1, vocabulary - 2, (count, length))
    for row in range(count):
        ids[row, length - 2 - row :] = 0
        ids[row, length - 2 - row] = vocabulary - 1
    return ids


BUILDERS: dict[str, Callable[[], ZooModel]] = {
    "timm_vit": timm_vit,
    "spelled_vit": spelled_vit,
    "open_clip_clip": open_clip_clip,
    "hf_clip": hf_clip,
    "hf_vit": hf_vit,
}
