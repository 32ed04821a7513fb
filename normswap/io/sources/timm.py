"""A ``Source`` from timm's models."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch

from normswap.errors import NormswapError
from normswap.io.preprocessing_configs import from_timm
from normswap.io.sources import Source, example_images
from normswap.io.sources.packages import build, close_names, import_extra, split_options


def timm_source(name: str, pretrained: bool = True, seed: int = 0) -> Source:
    """The timm model ``name``, with its pretrained weights.

    ``pretrained=False``, or ``NAME?pretrained=false``, gives it random weights from ``seed``
    instead. Input ``x`` [2, C, H, W]; output ``logits``, or ``features`` of a model without head.
    Raises NormswapError for an unknown name, weights that cannot be fetched, or timm missing.
    """
    name, wanted = split_options(name, "timm:")
    label = f"timm:{name}"
    timm: Any = import_extra("timm", label)
    if not timm.is_model(name) or ":" in name or "/" in name:
        advice = close_names(name, timm.list_models(), "timm.list_models()")
        raise NormswapError(f"{label}: timm {timm.__version__} has no such model; {advice}")
    pretrained = pretrained and wanted
    make = partial(timm.create_model, name, pretrained=pretrained)
    model = build(label, make, seed, label if pretrained else None)
    data = timm.data.resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    images = example_images(channels, height, width, torch.float32)
    output = "logits" if getattr(model, "num_classes", 0) else "features"
    axes = {next(iter(inspect.signature(model.forward).parameters)): {0: "batch"}}
    return Source(label, model, (images,), {}, axes, (output,), from_timm(data))
