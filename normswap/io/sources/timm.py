"""A ``Source`` from timm's models."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from normswap.errors import NormswapError
from normswap.io.preprocessing_configs import from_timm
from normswap.io.sources import Source, example_images
from normswap.io.sources.checkpoint import Weights, fill, read_state_dict
from normswap.io.sources.options import SourceOptions, split_options, square_side
from normswap.io.sources.packages import build, close_names, import_extra


def timm_source(
    name: str, pretrained: bool = True, seed: int = 0, checkpoint: Path | None = None
) -> Source:
    """The timm model ``NAME?OPTIONS``, with its pretrained weights or those of a ``checkpoint``.

    ``pretrained=False``, or ``NAME?pretrained=false``, gives it random weights from ``seed``
    instead; ``?num_classes=N`` another classifier, ``?img_size=N`` another size of images,
    ``?in_chans=N`` other channels, which timm fits pretrained weights to. Input ``x`` [2, C, H, W];
    output ``logits``, or ``features`` of a model without head.
    Raises NormswapError for an unknown name or option, weights that cannot be fetched or read or do
    not fit, or timm missing.
    """
    name, options = split_options(name, "timm:", "img_size", "in_chans", "num_classes")
    label = f"timm:{name}"
    timm: Any = import_extra("timm", label)
    if not timm.is_model(name) or ":" in name or "/" in name:
        advice = close_names(name, timm.list_models(), "timm.list_models()")
        raise NormswapError(f"{label}: timm {timm.__version__} has no such model; {advice}")
    file = checkpoint or options.checkpoint
    weights = None if file is None else read_state_dict(file)
    pretrained = pretrained and options.pretrained and weights is None
    make = partial(timm.create_model, name, pretrained=pretrained, **_arguments(options))
    model = build(label, make, seed, label if pretrained else None)
    if file is not None and weights is not None:
        fill(model, weights, file, label, partial(_fitting, label, model, weights, options))
        label = f"{file.name} ({label})"
    data = timm.data.resolve_model_data_config(model)
    if options.in_chans is not None:  # the model's own configuration is that of its weights
        data["input_size"] = (options.in_chans, *data["input_size"][1:])
    channels, height, width = data["input_size"]
    images = example_images(channels, height, width, torch.float32)
    output = "logits" if getattr(model, "num_classes", 0) else "features"
    axes = {next(iter(inspect.signature(model.forward).parameters)): {0: "batch"}}
    return Source(label, model, (images,), {}, axes, (output,), from_timm(data))


def _arguments(options: SourceOptions) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if options.num_classes is not None:
        given["num_classes"] = options.num_classes
    if options.in_chans is not None:
        given["in_chans"] = options.in_chans
    if options.img_size is not None:
        # Of the configuration: timm builds models of a fixed size for it, and prepares for it.
        given["pretrained_cfg_overlay"] = {"input_size": (3, *options.img_size)}
    return given


def _fitting(
    label: str, model: Any, weights: Weights, options: SourceOptions, wrong: Sequence[str]
) -> str:
    """The model's name with the options under which the weights would fit: '' unless a classifier,
    the first convolution and a table of positions are all that is wrong."""
    heads = _layers(model, "classifier")
    first, positions = [f"{layer}weight" for layer in _layers(model, "first_conv")], "pos_embed"
    found: dict[str, object] = {"num_classes": options.num_classes}
    if options.img_size is not None:  # one number for a square
        found["img_size"] = "x".join(map(str, dict.fromkeys(options.img_size)))
    found["in_chans"] = options.in_chans
    if not heads or any(
        not key.startswith(heads) and key not in (positions, *first) for key in wrong
    ):
        return ""
    if any(key.startswith(heads) for key in wrong):
        held = [tensor for key, tensor in weights.items() if key.startswith(heads) and tensor.dim()]
        found["num_classes"] = held[0].shape[0] if held else 0
    if positions in wrong:
        side = _image_side(model, weights.get(positions))
        if side is None:
            return ""
        found["img_size"] = side
    for key in (key for key in first if key in wrong):
        channels = _other_channels(model.state_dict()[key], weights.get(key))
        if channels is None:
            return ""
        found["in_chans"] = channels
    return f"{label}?" + "&".join(f"{k}={v}" for k, v in found.items() if v is not None)


def _layers(model: Any, what: str) -> tuple[str, ...]:
    """The prefixes of the weights of those layers that timm names so."""
    named = model.pretrained_cfg.get(what) or ()
    return tuple(f"{layer}." for layer in ([named] if isinstance(named, str) else named))


def _other_channels(own: torch.Tensor, held: torch.Tensor | None) -> int | None:
    """The channels that a convolution's weights [out, channels, H, W] are for, where nothing else
    of them differs from its ``own``."""
    if (
        held is None
        or held.dim() != 4
        or (held.shape[0], held.shape[2:])
        != (
            own.shape[0],
            own.shape[2:],
        )
    ):
        return None
    return held.shape[1]


def _image_side(model: Any, table: torch.Tensor | None) -> int | None:
    """The size of the square images that a table of positions [1, tokens, C] is for."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if table is None or table.dim() != 3 or table.shape[-1] != model.embed_dim or patch is None:
        return None
    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    patches = table.shape[1] - prefix
    return square_side(patches, int(patch[0]))
