"""open_clip's architectures, tiny."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normswap.io.sources.packages import ensure_torchvision_importable
from tests.zoo.model import Builder, ZooModel, images, token_ids
from tests.zoo.truth import RoleTable

ensure_torchvision_importable()

_VISION: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "layers": 2,
    "width": 64,
    "head_width": 16,
}
_TEXT: dict[str, Any] = {
    "context_length": 12,
    "vocab_size": 50,
    "width": 32,
    "heads": 2,
    "layers": 2,
}
_BLOCKS = (("*resblocks.*.ln_1", "pre_attention"), ("*resblocks.*.ln_2", "pre_mlp"))
_ENDS = (("visual.ln_post", "final"), ("*ln_final", "final"))
_PRE = (("visual.ln_pre", "embedding"),)


def _zoo(name: str, module: nn.Module, roles: RoleTable, text: tuple[str, ...]) -> ZooModel:
    inputs = {"image": images(3, 16), "text": token_ids(3, 12, 50)}
    outputs = ("image_features", "text_features", "logit_scale")
    return ZooModel(name, module, inputs, outputs, roles, image="image", text=text)


def open_clip_clip() -> ZooModel:
    import open_clip

    module = open_clip.CLIP(embed_dim=16, vision_cfg=_VISION, text_cfg=_TEXT)
    return _zoo("open_clip_clip", module, (*_PRE, *_BLOCKS, *_ENDS), ("transformer.*", "ln_final"))


def open_clip_siglip_like() -> ZooModel:
    """LayerScale, average pooling before the last norm, text without a causal mask."""
    from open_clip.model import CustomTextCLIP

    vision = {
        **_VISION,
        "ls_init_value": 0.1,
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "norm_kwargs": {"eps": 1e-6},
    }
    text = {
        **_TEXT,
        "ls_init_value": 0.1,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
        "norm_kwargs": {"eps": 1e-6},
    }
    module = CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    return _zoo("open_clip_siglip_like", module, (*_BLOCKS, *_ENDS), ("text.*",))


def open_clip_custom_blocks() -> ZooModel:
    """Norms on queries and keys, in and behind the attention, and inside the MLP."""
    from open_clip.model import CustomTextCLIP

    extra = {"qk_norm": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
    module = CustomTextCLIP(
        embed_dim=16, vision_cfg={**_VISION, **extra}, text_cfg={**_TEXT, **extra}
    )
    roles = (
        ("*resblocks.*.attn.ln_[qk]", "query_key"),
        ("*resblocks.*.attn.ln_inner", "other"),
        ("*resblocks.*.ln_attn", "post_attention"),
        ("*resblocks.*.mlp.ln", "other"),
        *_PRE,
        *_BLOCKS,
        *_ENDS,
    )
    return _zoo("open_clip_custom_blocks", module, roles, ("text.*",))


def open_clip_mixed() -> ZooModel:
    """OpenAI's mixed precision: linear layers in half, norms in float32 between two casts."""
    import open_clip
    from open_clip.model import convert_weights_to_lp

    half = torch.float16
    module = open_clip.CLIP(embed_dim=16, vision_cfg=_VISION, text_cfg=_TEXT, cast_dtype=half)
    convert_weights_to_lp(module, half)
    text = ("transformer.*", "ln_final")
    zoo = _zoo("open_clip_mixed", module, (*_PRE, *_BLOCKS, *_ENDS), text)
    zoo.inputs["image"] = zoo.inputs["image"].to(half)
    return zoo


BUILDERS: dict[str, Builder] = {
    "open_clip_siglip_like": open_clip_siglip_like,
    "open_clip_custom_blocks": open_clip_custom_blocks,
    "open_clip_mixed": open_clip_mixed,
}
