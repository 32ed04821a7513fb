"""A ``Source`` from timm's models."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch

from normswap.errors import NormswapError, first_line, quiet
from normswap.io.extras import import_extra, split_options
from normswap.io.hub import reachable_hub
from normswap.io.preprocessing_configs import from_timm
from normswap.io.source import Source, example_images

_TALKATIVE = ("timm",)


def timm_source(name: str, pretrained: bool = True, seed: int = 0) -> Source:
    """The timm model ``name``, with its pretrained weights.

    ``pretrained=False``, or ``NAME?pretrained=false``, gives it random weights from ``seed``
    instead. Input ``x`` [2, C, H, W]; output ``logits``, or ``features`` of a model without head.
    Raises NormswapError for an unknown name, weights that cannot be fetched, or timm missing.
    """
    name, wanted = split_options(name, "timm:")
    timm: Any = import_extra("timm", f"timm:{name}")
    if not timm.is_model(name) or ":" in name or "/" in name:
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        advice = f"did you mean {', '.join(close)}" if close else "see timm.list_models()"
        raise NormswapError(f"timm:{name}: timm {timm.__version__} has no such model; {advice}")
    try:
        with reachable_hub(), quiet(*_TALKATIVE), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=pretrained and wanted)
    except Exception as error:  # of the network, the hub, or a name without pretrained weights
        if not (pretrained and wanted):
            raise NormswapError(f"timm:{name}: cannot be built ({first_line(error)})") from error
        raise NormswapError(
            f"timm:{name}: its pretrained weights could not be fetched ({first_line(error)}); "
            f"timm:{name}?pretrained=false takes random ones"
        ) from error
    data = timm.data.resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    images = example_images(channels, height, width, torch.float32)
    output = "logits" if getattr(model, "num_classes", 0) else "features"
    axes = {next(iter(inspect.signature(model.forward).parameters)): {0: "batch"}}
    return Source(f"timm:{name}", model, (images,), {}, axes, (output,), from_timm(data))
