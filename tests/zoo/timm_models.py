"""timm's architectures, tiny."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normswap.io.sources.packages import ensure_torchvision_importable
from tests.zoo.model import Builder, ZooModel, images
from tests.zoo.truth import RoleTable

ensure_torchvision_importable()

_PRE_NORM = (("blocks.*.norm1", "pre_attention"), ("blocks.*.norm2", "pre_mlp"))
_POST_NORM = (("blocks.*.norm1", "post_attention"), ("blocks.*.norm2", "post_mlp"))
_FINAL = (("norm", "final"),)
_CONVNEXT = (
    ("stem.1", "embedding"),
    ("stages.*.downsample.0", "downsample"),
    ("stages.*.blocks.*.norm", "pre_mlp"),
    ("head.norm", "final"),
)
_TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _zoo(name: str, module: nn.Module, roles: RoleTable) -> ZooModel:
    return ZooModel(name, module, {"x": images(3, 32)}, ("logits",), roles, image="x")


def _vit(name: str, roles: RoleTable, **options: Any) -> ZooModel:
    from timm.models.vision_transformer import VisionTransformer

    return _zoo(name, VisionTransformer(**_TINY, num_classes=10, **options), roles)


def timm_vit() -> ZooModel:
    import timm

    module = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8)
    return _zoo("timm_vit", module, (*_PRE_NORM, *_FINAL))


def timm_res_post_norm() -> ZooModel:
    """Each norm on its branch, just before the residual sum."""
    from timm.models.vision_transformer import ResPostBlock

    return _vit("timm_res_post_norm", (*_POST_NORM, *_FINAL), block_fn=ResPostBlock)


def timm_qk_norm() -> ZooModel:
    roles = (("blocks.*.attn.[qk]_norm", "query_key"), *_PRE_NORM, *_FINAL)
    return _vit("timm_qk_norm", roles, qk_norm=True)


def timm_rms_norm() -> ZooModel:
    from timm.layers import RmsNorm

    return _vit("timm_rms_norm", (*_PRE_NORM, *_FINAL), norm_layer=RmsNorm)


def timm_look_alike() -> ZooModel:
    """One LayerNorm among timm's SimpleNorms: those divide by a deviation without centring."""
    from timm.layers import LayerNorm, SimpleNorm

    zoo = _vit("timm_look_alike", _FINAL, norm_layer=SimpleNorm)
    zoo.module.norm = LayerNorm(32)
    return zoo


def timm_parallel_things() -> ZooModel:
    """Two attentions side by side, then two MLPs side by side."""
    from timm.models.vision_transformer import ParallelThingsBlock

    roles = (
        ("blocks.*.attns.*.norm", "pre_attention"),
        ("blocks.*.ffns.*.norm", "pre_mlp"),
        *_FINAL,
    )
    return _vit("timm_parallel_things", roles, block_fn=ParallelThingsBlock)


def timm_parallel_scaling() -> ZooModel:
    """Attention and MLP side by side behind one norm, which is called by what it feeds first."""
    from timm.models.vision_transformer import ParallelScalingBlock

    roles = (
        ("blocks.*.in_norm", "pre_attention"),
        ("blocks.*.[qk]_norm", "query_key"),
        *_FINAL,
    )
    return _vit("timm_parallel_scaling", roles, block_fn=ParallelScalingBlock, qk_norm=True)


def timm_dinov2_reg() -> ZooModel:
    """Registers and LayerScale, as vit_*_patch14_reg4_dinov2."""
    options = {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
    return _vit("timm_dinov2_reg", (*_PRE_NORM, *_FINAL), **options)


def timm_siglip() -> ZooModel:
    """Attention pooling without a class token, as vit_*_siglip."""
    roles = (*_PRE_NORM, *_FINAL, ("attn_pool.norm", "pre_mlp"))
    return _vit("timm_siglip", roles, class_token=False, global_pool="map")


def timm_deit_distilled() -> ZooModel:
    from timm.models.deit import VisionTransformerDistilled

    module = VisionTransformerDistilled(**_TINY, num_classes=10)
    return _zoo("timm_deit_distilled", module, (*_PRE_NORM, *_FINAL))


def timm_beit() -> ZooModel:
    """Relative position bias, LayerScale and a norm behind average pooling."""
    from timm.models.beit import Beit

    module = Beit(
        **_TINY, num_classes=10, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True
    )
    return _zoo("timm_beit", module, (*_PRE_NORM, ("fc_norm", "final")))


def timm_eva02() -> ZooModel:
    """SwiGLU, rotary positions and the extra norms inside the attention and the MLP (sub-LN)."""
    from timm.models.eva import Eva

    class OneInput(Eva):
        """TorchScript's exporter makes tensors of arguments that have a number as default."""

        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)

    module = OneInput(
        **_TINY,
        num_classes=10,
        mlp_ratio=4 * 2 / 3,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
    )
    roles = (
        ("blocks.*.attn.norm", "other"),
        ("blocks.*.mlp.norm", "other"),
        *_PRE_NORM,
        ("fc_norm", "final"),
    )
    return _zoo("timm_eva02", module, roles)


_SWIN = {"img_size": 32, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2), "window_size": 4}


def timm_swin() -> ZooModel:
    """Shifted windows; patch merging has its norm before the reduction."""
    from timm.models.swin_transformer import SwinTransformer

    roles = (
        ("patch_embed.norm", "embedding"),
        ("layers.*.downsample.norm", "downsample"),
        ("layers.*.blocks.*.norm1", "pre_attention"),
        ("layers.*.blocks.*.norm2", "pre_mlp"),
        *_FINAL,
    )
    return _zoo("timm_swin", SwinTransformer(**_SWIN, num_classes=10), roles)


def timm_swin_v2() -> ZooModel:
    """Cosine attention, norms behind the branches, patch merging's behind the reduction."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    roles = (
        ("patch_embed.norm", "embedding"),
        ("layers.*.downsample.norm", "downsample"),
        ("layers.*.blocks.*.norm1", "post_attention"),
        ("layers.*.blocks.*.norm2", "post_mlp"),
        *_FINAL,
    )
    return _zoo("timm_swin_v2", SwinTransformerV2(**_SWIN, num_classes=10), roles)


def _convnext(name: str, **options: Any) -> ZooModel:
    from timm.models.convnext import ConvNeXt

    module = ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), **options)
    return _zoo(name, module, _CONVNEXT)


def timm_convnext() -> ZooModel:
    """The block's norm over the last axis, the others over the channels of an image."""
    return _convnext("timm_convnext")


def timm_convnext_conv_mlp() -> ZooModel:
    """Every norm over the channels of an image (LayerNorm2d)."""
    return _convnext("timm_convnext_conv_mlp", conv_mlp=True)


def timm_convnext_rms() -> ZooModel:
    """RMSNorm over the channels of an image, spelled out by timm itself."""
    return _convnext("timm_convnext_rms", conv_mlp=True, norm_layer="rmsnorm2d")


def timm_convnext_v2() -> ZooModel:
    """Global response normalisation inside the MLP, which is none of the norms looked for."""
    return _convnext("timm_convnext_v2", use_grn=True, ls_init_value=None)


BUILDERS: dict[str, Builder] = {
    "timm_res_post_norm": timm_res_post_norm,
    "timm_qk_norm": timm_qk_norm,
    "timm_rms_norm": timm_rms_norm,
    "timm_look_alike": timm_look_alike,
    "timm_parallel_things": timm_parallel_things,
    "timm_parallel_scaling": timm_parallel_scaling,
    "timm_dinov2_reg": timm_dinov2_reg,
    "timm_siglip": timm_siglip,
    "timm_deit_distilled": timm_deit_distilled,
    "timm_beit": timm_beit,
    "timm_eva02": timm_eva02,
    "timm_swin": timm_swin,
    "timm_swin_v2": timm_swin_v2,
    "timm_convnext": timm_convnext,
    "timm_convnext_conv_mlp": timm_convnext_conv_mlp,
    "timm_convnext_rms": timm_convnext_rms,
    "timm_convnext_v2": timm_convnext_v2,
}
