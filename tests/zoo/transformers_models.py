"""transformers' architectures, tiny, with plain tensors in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normswap.io.sources.packages import ensure_torchvision_importable
from tests.zoo.model import Builder, ZooModel, images, token_ids
from tests.zoo.truth import RoleTable

ensure_torchvision_importable()

_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT: dict[str, Any] = {**_TOWER, "vocab_size": 50, "max_position_embeddings": 12}
_VISION: dict[str, Any] = {**_TOWER, "image_size": 16, "patch_size": 4}
_CLIP_OUTPUTS = ("logits_per_image", "text_embeds", "image_embeds")
_CLIP_BLOCKS = (("*.layer_norm1", "pre_attention"), ("*.layer_norm2", "pre_mlp"))


class _Plain(nn.Module):
    """A transformers model whose results are a tuple of tensors; its modules keep their paths."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.__dict__["model"] = model

    def picked(self, **given: torch.Tensor) -> Any:
        # not called as a module: symbolic_trace only knows the modules that are held by this one
        result = self.__dict__["model"].forward(**given)
        return tuple(result[name] for name in self.names)


class _Image(_Plain):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.picked(pixel_values=pixel_values)


class _Text(_Plain):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.picked(input_ids=input_ids, attention_mask=attention_mask)


class _ImageText(_Plain):
    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> Any:
        return self.picked(pixel_values=pixel_values, input_ids=input_ids)


class _ImageTextMask(_Plain):
    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> Any:
        return self.picked(
            pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask
        )


def _image_model(
    name: str, model: nn.Module, roles: RoleTable, channels: int = 3, size: int = 16
) -> ZooModel:
    module = _Image(model, ("logits",))
    inputs = {"pixel_values": images(channels, size)}
    return ZooModel(name, module, inputs, module.names, roles, image="pixel_values")


def _clip_like(name: str, model: nn.Module, roles: RoleTable, mask: bool = True) -> ZooModel:
    module = (_ImageTextMask if mask else _ImageText)(model, _CLIP_OUTPUTS)
    ids = token_ids(3, 12, 50)
    inputs = {"pixel_values": images(3, 16), "input_ids": ids}
    if mask:
        inputs["attention_mask"] = torch.ones_like(ids)
    return ZooModel(name, module, inputs, module.names, roles, "pixel_values", ("text_model.*",))


def hf_clip() -> ZooModel:
    import transformers

    config = transformers.CLIPConfig(
        text_config={**_TEXT, "eos_token_id": 49, "bos_token_id": 48},
        vision_config=_VISION,
        projection_dim=16,
    )
    roles = (
        ("vision_model.pre_layrnorm", "embedding"),
        *_CLIP_BLOCKS,
        ("vision_model.post_layernorm", "final"),
        ("text_model.final_layer_norm", "final"),
    )
    return _clip_like("hf_clip", transformers.CLIPModel(config), roles)


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
    roles = (
        ("vit.layers.*.layernorm_before", "pre_attention"),
        ("vit.layers.*.layernorm_after", "pre_mlp"),
        ("vit.layernorm", "final"),
    )
    model = transformers.ViTForImageClassification(config)
    return _image_model("hf_vit", model, roles, channels=1, size=8)


def hf_siglip() -> ZooModel:
    """Both towers; the image tower ends in attention pooling with an MLP of its own."""
    import transformers

    text = {**_TEXT, "bos_token_id": 48, "eos_token_id": 49}
    config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    roles = (
        *_CLIP_BLOCKS,
        ("vision_model.post_layernorm", "final"),
        ("vision_model.head.layernorm", "pre_mlp"),
        ("text_model.final_layer_norm", "final"),
    )
    return _clip_like("hf_siglip", transformers.SiglipModel(config), roles, mask=False)


def hf_aimv2() -> ZooModel:
    """A CLIP with RMSNorm in both towers, and SwiGLU."""
    import transformers

    config = transformers.Aimv2Config(
        text_config={**_TEXT, "eos_token_id": 49}, vision_config=_VISION, projection_dim=16
    )
    roles = (
        ("vision_model.embeddings.rms_norm", "embedding"),
        ("*.rms_norm1", "pre_attention"),
        ("*.rms_norm2", "pre_mlp"),
        ("vision_model.rms_norm", "final"),
        ("text_model.rms_norm", "final"),
    )
    return _clip_like("hf_aimv2", transformers.Aimv2Model(config), roles)


def hf_dinov2_reg() -> ZooModel:
    import transformers

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_labels=10,
    )
    roles = (
        ("dinov2_with_registers.encoder.layer.*.norm1", "pre_attention"),
        ("dinov2_with_registers.encoder.layer.*.norm2", "pre_mlp"),
        ("dinov2_with_registers.layernorm", "final"),
    )
    model = transformers.Dinov2WithRegistersForImageClassification(config)
    return _image_model("hf_dinov2_reg", model, roles)


def hf_beit() -> ZooModel:
    """Relative position bias, LayerScale and a norm behind average pooling."""
    import transformers

    config = transformers.BeitConfig(
        **_TOWER, image_size=16, patch_size=4, use_relative_position_bias=True, num_labels=10
    )
    roles = (
        ("beit.layers.*.layernorm_before", "pre_attention"),
        ("beit.layers.*.layernorm_after", "pre_mlp"),
        ("beit.pooler.layernorm", "final"),
    )
    return _image_model("hf_beit", transformers.BeitForImageClassification(config), roles)


def hf_bert() -> ZooModel:
    """Post-norm: each norm behind a residual sum, none at the end."""
    import transformers

    names = ("last_hidden_state", "pooler_output")
    module = _Text(transformers.BertModel(transformers.BertConfig(**_TEXT)), names)
    ids = token_ids(3, 12, 50)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).to(torch.int64)}
    roles = (
        ("embeddings.LayerNorm", "embedding"),
        ("encoder.layer.*.attention.output.LayerNorm", "post_attention"),
        ("encoder.layer.*.output.LayerNorm", "post_mlp"),
    )
    return ZooModel("hf_bert", module, inputs, names, roles, text=("*",))


def hf_swin() -> ZooModel:
    import transformers

    config = transformers.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=4,
        num_labels=10,
    )
    roles = (
        ("swin.embeddings.norm", "embedding"),
        ("swin.encoder.layers.*.downsample.norm", "downsample"),
        ("swin.encoder.layers.*.blocks.*.layernorm_before", "pre_attention"),
        ("swin.encoder.layers.*.blocks.*.layernorm_after", "pre_mlp"),
        ("swin.layernorm", "final"),
    )
    model = transformers.SwinForImageClassification(config)
    return _image_model("hf_swin", model, roles, size=32)


def hf_convnext() -> ZooModel:
    import transformers

    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_labels=10
    )
    roles = (
        ("convnext.embeddings.layernorm", "embedding"),
        ("convnext.encoder.stages.*.downsampling_layer.0", "downsample"),
        ("convnext.encoder.stages.*.layers.*.layernorm", "pre_mlp"),
        ("convnext.layernorm", "final"),
    )
    model = transformers.ConvNextForImageClassification(config)
    return _image_model("hf_convnext", model, roles, size=32)


BUILDERS: dict[str, Builder] = {
    "hf_siglip": hf_siglip,
    "hf_aimv2": hf_aimv2,
    "hf_dinov2_reg": hf_dinov2_reg,
    "hf_beit": hf_beit,
    "hf_bert": hf_bert,
    "hf_swin": hf_swin,
    "hf_convnext": hf_convnext,
}
