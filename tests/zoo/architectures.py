"""Architectures of timm and transformers that the zoo does not have, small and with random weights.

``ARCHITECTURES`` has a builder for each, by name. They are for ``benchmarks/architectures.py`` and
for the roles of their norms; what every pass is tested on is the zoo.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from normswap.io.sources.packages import ensure_torchvision_importable

ensure_torchvision_importable()

_VOCABULARY, _LENGTH, _SIDE, _SAMPLES = 60, 12, 32, 4000


@dataclass
class Architecture:
    """A module in evaluation mode, with what it takes by name."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]


Options = Mapping[str, Any]

# -- timm ------------------------------------------------------------------------------------------

# The side of the image and the options of a model by its name.
TIMM: dict[str, tuple[int, Options]] = {
    "beitv2_base_patch16_224": (32, {"depth": 1, "embed_dim": 48, "num_heads": 2, "img_size": 32}),
    "cait_xxs24_224": (32, {"img_size": 32, "depth": 1}),
    "caformer_s18": (64, {}),
    "coatnet_pico_rw_224": (64, {"img_size": 64}),
    "convformer_s18": (64, {}),
    "convmixer_768_32": (64, {}),
    "crossvit_tiny_240": (240, {"depth": ((1, 1, 0),)}),
    "cspresnet50": (64, {}),
    "davit_tiny": (64, {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64),
                        "num_heads": (2, 2, 2, 2)}),
    "densenet121": (64, {"block_config": (2, 2, 2, 2)}),
    "dla34": (64, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {"depths": (1, 1, 1, 2)}),
    "efficientformerv2_s0": (64, {"img_size": 64, "depths": (1, 1, 2, 2)}),
    "efficientnet_b0": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "ese_vovnet19b_dw": (64, {}),
    "eva02_tiny_patch14_224": (28, {"img_size": 28, "depth": 1}),
    "fastvit_t8": (64, {}),
    "flexivit_small": (32, {"img_size": 32, "patch_size": 8, "depth": 1}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (224, {}),
    "ghostnet_100": (64, {}),
    "gmixer_12_224": (224, {}),
    "gmlp_ti16_224": (224, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (224, {"stages": (1, 1, 1, 1), "embed_dim": 24}),
    "hrnet_w18_small": (64, {}),
    "inception_next_atto": (64, {"depths": (1, 1, 1, 1)}),
    "inception_v3": (96, {"aux_logits": False}),
    "levit_128s": (224, {}),
    "mambaout_femto": (64, {"depths": (1, 1, 1, 1)}),
    "maxvit_pico_rw_256": (64, {"img_size": 64}),
    "mixer_s16_224": (224, {}),
    "mixnet_s": (64, {}),
    "mnasnet_small": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "mobilenetv4_hybrid_medium": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "nest_tiny": (224, {}),
    "nextvit_small": (64, {}),
    "nf_resnet26": (64, {}),
    "pit_ti_224": (224, {}),
    "poolformer_s12": (64, {}),
    "poolformerv2_s12": (64, {}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1)}),
    "rdnet_tiny": (64, {}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "repghostnet_050": (64, {}),
    "repvgg_a0": (64, {}),
    "repvit_m0_9": (64, {}),
    "res2net50_14w_8s": (64, {}),
    "resmlp_12_224": (224, {}),
    "resnest14d": (64, {}),
    "resnet18": (64, {}),
    "resnetv2_50": (64, {"layers": (1, 1, 1, 1)}),
    "resnetv2_50x1_bit": (64, {}),
    "rexnet_100": (64, {}),
    "samvit_base_patch16": (64, {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 2,
                                 "neck_chans": 16}),
    "sequencer2d_s": (32, {"layers": (1, 1, 1, 1), "img_size": 32}),
    "shvit_s1": (224, {}),
    "starnet_s050": (64, {}),
    "swiftformer_xs": (64, {"layers": (1, 1, 1, 1)}),
    "swinv2_cr_tiny_ns_224": (64, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24,
                                   "window_size": 2}),
    "tiny_vit_5m_224": (224, {"depths": (1, 1, 1, 1)}),
    "tnt_s_legacy_patch16_224": (32, {"img_size": 32, "depth": 1}),
    "twins_pcpvt_small": (64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    "twins_svt_small": (64, {"img_size": 64, "depths": (1, 1, 2, 2)}),
    "vgg11_bn": (32, {}),
    "visformer_tiny": (224, {"depth": (1, 1, 1)}),
    "vit_relpos_small_patch16_224": (32, {"img_size": 32, "depth": 1}),
    "vitamin_small_224": (64, {"img_size": 64, "depth": 1}),
    "volo_d1_224": (224, {}),
    "xception41": (64, {}),
    "xcit_nano_12_p16_224": (32, {"depth": 1}),
}  # fmt: skip


def _timm(name: str, side: int, options: Options) -> Architecture:
    import timm

    return Architecture(
        timm.create_model(name, num_classes=5, **options), {"x": torch.randn(2, 3, side, side)}
    )


# -- transformers ----------------------------------------------------------------------------------

# Sizes by the names that configurations have for them; each takes those that it knows.
_SMALL: Options = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "emb_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "n_inner"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "d_inner"), 64),
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size"), _VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 0),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id"), 1),
    "image_size": _SIDE,
    "patch_size": 8,
    "rotary_dim": 8,
    "use_cache": False,
    "attn_implementation": "eager",
}  # fmt: skip
_TEXT, _VISION = "text", "vision"
_PARTS: Options = {"text_config": _TEXT, "vision_config": _VISION}

# The parts of the inputs, and options beside the sizes, of a model by its class.
TRANSFORMERS: dict[str, tuple[str, Options]] = {
    "AlbertModel": ("text", {}),
    "BartModel": ("text decoder", {}),
    "BertGenerationEncoder": ("text", {}),
    "BigBirdModel": ("text", {"attention_type": "original_full"}),
    "BioGptModel": ("text", {}),
    "BitModel": ("image", {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64],
                           "depths": [1, 1, 1, 1], "num_groups": 4}),
    "BlipModel": ("image text", {}),
    "BloomModel": ("text", {}),
    "CLIPSegModel": ("image text", {}),
    "CamembertModel": ("text", {}),
    "ChineseCLIPVisionModel": ("image", {}),
    "CodeGenModel": ("text", {"n_head": 4, "rotary_dim": 4}),
    "CohereModel": ("text", {}),
    "ConvBertModel": ("text", {"embedding_size": 32}),
    "ConvNextV2Model": ("image", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1],
                                  "image_size": 64}),
    "CvtModel": ("image", {}),
    "DPTModel": ("image", {}),
    "Data2VecVisionModel": ("image", {}),
    "DebertaModel": ("text", {}),
    "DebertaV2Model": ("text", {"relative_attention": True, "position_biased_input": False,
                                "pos_att_type": ["c2p", "p2c"]}),
    "DeiTModel": ("image", {}),
    "Dinov2Model": ("image", {}),
    "DistilBertModel": ("text", {}),
    "EfficientNetModel": ("image", {"width_coefficient": 0.5, "depth_coefficient": 0.5,
                                    "hidden_dim": 640}),
    "ElectraModel": ("text", {}),
    "ErnieModel": ("text", {}),
    "EsmModel": ("text", {"emb_layer_norm_before": True}),
    "FNetModel": ("text", {}),
    "FalconModel": ("text", {}),
    "FocalNetModel": ("image", {"embed_dim": 16, "depths": [1, 1, 1, 1]}),
    "GLPNModel": ("image", {"image_size": 64, "hidden_sizes": [16, 16, 32, 32],
                            "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}),
    "GPT2Model": ("text", {}),
    "GPTBigCodeModel": ("text", {}),
    "GPTJModel": ("text", {}),
    "GPTNeoModel": ("text", {"attention_types": [[["global", "local"], 1]]}),
    "GPTNeoXModel": ("text", {}),
    "Gemma2Model": ("text", {}),
    "Gemma3TextModel": ("text", {}),
    "GemmaModel": ("text", {}),
    "GraniteModel": ("text", {}),
    "GroupViTModel": ("image text", {}),
    "HieraModel": ("image", {"image_size": [224, 224], "embed_dim": 16, "depths": [1, 1, 1, 1],
                             "num_heads": [1, 2, 4, 8]}),
    "HubertModel": ("audio", {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16,
                              "num_conv_pos_embedding_groups": 4}),
    "IBertModel": ("text", {}),
    "IJepaModel": ("image", {}),
    "LevitModel": ("image", {"image_size": 64, "patch_size": 16, "hidden_sizes": [16, 32, 48],
                             "depths": [1, 1, 1], "key_dim": [8, 8, 8],
                             "num_attention_heads": [2, 2, 2]}),
    "LlamaModel": ("text", {}),
    "M2M100Model": ("text decoder", {}),
    "MPNetModel": ("text", {}),
    "MT5EncoderModel": ("text", {}),
    "MarianModel": ("text decoder", {}),
    "Mask2FormerModel": ("image", {"decoder_layers": 3}),
    "MegatronBertModel": ("text", {}),
    "MistralModel": ("text", {}),
    "MobileBertModel": ("text", {"intra_bottleneck_size": 32, "true_hidden_size": 32}),
    "MobileNetV1Model": ("image", {"depth_multiplier": 0.25}),
    "MobileNetV2Model": ("image", {"depth_multiplier": 0.25}),
    "MobileViTModel": ("image", {"image_size": 64, "hidden_sizes": [16, 24, 32],
                                 "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
                                 "patch_size": 2}),
    "ModernBertModel": ("text", {"global_attn_every_n_layers": 2}),
    "MptModel": ("text", {}),
    "NystromformerModel": ("text", {"segment_means_seq_len": _LENGTH, "num_landmarks": _LENGTH}),
    "OPTModel": ("text", {"word_embed_proj_dim": 32}),
    "Olmo2Model": ("text", {}),
    "OlmoModel": ("text", {}),
    "OwlViTModel": ("image text", {}),
    "PegasusModel": ("text decoder", {}),
    "PersimmonModel": ("text", {}),
    "Phi3Model": ("text", {"original_max_position_embeddings": 64}),
    "PhiModel": ("text", {}),
    "PoolFormerModel": ("image", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
                                  "patch_size": 7}),
    "PvtModel": ("image", {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1],
                           "num_attention_heads": [1, 2, 2, 4], "image_size": 64}),
    "PvtV2Model": ("image", {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1],
                             "num_attention_heads": [1, 2, 2, 4], "image_size": 64}),
    "Qwen2Model": ("text", {}),
    "Qwen3Model": ("text", {}),
    "RegNetModel": ("image", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
                              "depths": [1, 1, 1, 1], "groups_width": 8}),
    "RemBertModel": ("text", {"input_embedding_size": 32}),
    "ResNetModel": ("image", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
                              "depths": [1, 1, 1, 1]}),
    "RoFormerModel": ("text", {"embedding_size": 32}),
    "RobertaModel": ("text", {}),
    "RobertaPreLayerNormModel": ("text", {}),
    "SegformerModel": ("image", {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
                                 "num_attention_heads": [1, 1, 2, 2]}),
    "SqueezeBertModel": ("text", {"embedding_size": 32}),
    "StableLmModel": ("text", {}),
    "Starcoder2Model": ("text", {}),
    "Swin2SRModel": ("image", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
                               "window_size": 4, "patch_size": 1}),
    "Swinv2Model": ("image", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
                              "window_size": 4, "patch_size": 4}),
    "T5Model": ("text decoder", {}),
    "ViTMAEModel": ("image", {"mask_ratio": 0.0}),
    "ViTMSNModel": ("image", {}),
    "VideoMAEModel": ("video", {"num_frames": 4, "tubelet_size": 2}),
    "VisionTextDualEncoderModel": ("image text", {}),
    "VitDetModel": ("image", {}),
    "Wav2Vec2Model": ("audio", {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16,
                                "num_conv_pos_embedding_groups": 4}),
    "WhisperModel": ("mel decoder", {"max_source_positions": 20, "max_target_positions": 20,
                                     "num_mel_bins": 16}),
    "XGLMModel": ("text", {"attention_heads": 2}),
    "XLMModel": ("text", {}),
    "XLNetModel": ("text", {}),
    "YolosModel": ("image", {"image_size": [32, 32]}),
}  # fmt: skip


class _Tensors(nn.Module):
    """A model with the floating tensors among its results as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def tensors(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(floats(self.model(**inputs, return_dict=True)))


def _with_arguments(names: list[str]) -> type[_Tensors]:
    """``_Tensors`` whose forward has these arguments, as capturing wants them."""
    scope: dict[str, Any] = {}
    given = ", ".join(f"{name}={name}" for name in names)
    exec(f"def forward(self, {', '.join(names)}): return self.tensors({given})", scope)
    return type("Tensors", (_Tensors,), {"forward": scope["forward"]})


def floats(result: Any) -> Iterator[torch.Tensor]:
    """The floating tensors in a result, however it is nested, in order."""
    if isinstance(result, torch.Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, Mapping):
        for part in result.values():
            yield from floats(part)
    elif isinstance(result, tuple | list):
        for part in result:
            yield from floats(part)


def _transformers(name: str, kinds: str, options: Options) -> Architecture:
    import transformers

    cls = getattr(transformers, name)
    config = _config(cls.config_class, options)
    model = cls(config)
    side = options.get("image_size", _SIDE)
    side = side if isinstance(side, int) else side[0]
    inputs = {k: v for kind in kinds.split() for k, v in _INPUTS[kind](side).items()}
    accepted = inspect.signature(model.forward).parameters
    inputs = {k: v for k, v in inputs.items() if k in accepted}
    return Architecture(_with_arguments(list(inputs))(model), inputs)


def _config(cls: Any, options: Options) -> Any:
    default = cls()
    known = {k: v for k, v in _SMALL.items() if _takes(default, k)}
    parts = {k: _config(type(part), {}) for k in _PARTS if (part := getattr(default, k, None))}
    return cls(**{**known, **{k: part.to_dict() for k, part in parts.items()}, **options})


def _takes(default: Any, name: str) -> bool:
    """Whether a configuration has this size, and as one number."""
    value = getattr(default, name, None)
    return name in default.to_dict() and (value is None or isinstance(value, int | str))


def _ids() -> torch.Tensor:
    return torch.randint(2, _VOCABULARY, (2, _LENGTH))


_INPUTS: dict[str, Callable[[int], dict[str, torch.Tensor]]] = {
    "text": lambda side: {
        "input_ids": _ids(), "attention_mask": torch.ones(2, _LENGTH, dtype=torch.int64),
    },
    "decoder": lambda side: {"decoder_input_ids": _ids()},
    "image": lambda side: {"pixel_values": torch.randn(2, 3, side, side)},
    "video": lambda side: {"pixel_values": torch.randn(2, 4, 3, side, side)},
    "audio": lambda side: {"input_values": torch.randn(2, _SAMPLES)},
    "mel": lambda side: {"input_features": torch.randn(2, 16, 40)},
}  # fmt: skip

# -- all of them -----------------------------------------------------------------------------------

ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    **{f"timm {name}": partial(_timm, name, *row) for name, row in TIMM.items()},
    **{f"hf {name}": partial(_transformers, name, *row) for name, row in TRANSFORMERS.items()},
}


def build(name: str) -> Architecture:
    """The architecture called ``name``, the same weights at every call, moved away from where they
    begin."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        built = ARCHITECTURES[name]()
        for parameter in built.module.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter)).requires_grad_(False)
        built.module.eval()
        _take_statistics(built)
    return built


def _take_statistics(built: Architecture) -> None:
    """Gives BatchNorms the statistics of the inputs, or all that tells inputs apart would vanish
    from layer to layer."""
    norms = [m for m in built.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        built.module(**built.inputs)
    for norm in norms:
        norm.eval()
