"""A ``Source`` from open_clip's models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from normswap.errors import NormswapError, first_line
from normswap.io.preprocessing_configs import from_open_clip
from normswap.io.sources import Source, example_images, example_texts, return_only, tensor_fields
from normswap.io.sources.checkpoint import Weights, fill, read_state_dict
from normswap.io.sources.options import split_options, square_side
from normswap.io.sources.packages import build, close_names, import_extra


def open_clip_source(
    name: str, pretrained: bool = True, seed: int = 0, checkpoint: Path | None = None
) -> Source:
    """The open_clip model ``NAME/TAG``, with the pretrained weights of that tag, or ``NAME`` with
    those of a ``checkpoint``.

    ``pretrained=False``, or ``NAME?pretrained=false``, gives it random weights from ``seed``
    instead, ``?img_size=N`` another size of images, which open_clip fits pretrained weights to.
    Inputs ``image`` [2, 3, H, W] and ``text`` int64 [3, L]; outputs ``image_features``,
    ``text_features``, ``logit_scale`` and what else the model returns.
    Raises NormswapError for an unknown name, tag or option, weights that cannot be fetched or read
    or do not fit, or open_clip missing.
    """
    full, given = split_options(name, "open_clip:", "img_size")
    label = f"open_clip:{full}"
    open_clip: Any = import_extra("open_clip", label)
    names = open_clip.list_models()
    architecture, _, tag = full.partition("/")
    if architecture not in names:
        advice = close_names(architecture, names, "open_clip.list_models()")
        raise NormswapError(
            f"{label}: open_clip {open_clip.__version__} has no model "
            f"{architecture!r:.80}; {advice}"
        )
    file = checkpoint or given.checkpoint
    weights = None if file is None else read_state_dict(file)
    options: dict[str, Any] = {"pretrained_text": False}
    fetched = pretrained and given.pretrained and weights is None
    if fetched:
        options = _of_tag(open_clip, architecture, tag)
    if given.img_size is not None:
        height, width = given.img_size  # its ResNets take one number only
        options["force_image_size"] = height if height == width else given.img_size
    make = partial(open_clip.create_model, architecture, device="cpu", **options)
    model = build(label, make, seed, f"open_clip:{architecture}" if fetched else None)
    if file is not None and weights is not None:
        fill(
            model,
            _adapted(open_clip, model, weights),
            file,
            label,
            partial(_fitting, label, model, weights),
        )
        label = f"{file.name} ({label})"
    return _source(label, model)


def _adapted(open_clip: Any, model: Any, weights: Weights) -> Weights:
    """The weights by the names of today: a text tower of its own has a prefix by now."""
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = open_clip.model.convert_to_custom_text_state_dict(dict(weights))
    scalars = {"logit_scale", "logit_bias"} & weights.keys()
    own = model.state_dict()
    one = {k: weights[k].reshape(own[k].shape) for k in scalars if weights[k].numel() == 1}
    return {**weights, **one}


def _fitting(label: str, model: Any, weights: Weights, wrong: Sequence[str]) -> str:
    """The model's name with the size of images under which the weights would fit: '' unless a table
    of positions, a class token's first, is all that is wrong."""
    positions = "visual.positional_embedding"
    patch = getattr(model.visual, "patch_size", None)
    if list(wrong) != [positions] or positions not in weights or patch is None:
        return ""
    side = square_side(weights[positions].shape[0] - 1, int(patch[0]))
    return f"{label}?img_size={side}" if side is not None else ""


def _of_tag(open_clip: Any, architecture: str, tag: str) -> dict[str, Any]:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        problem = f"has no pretrained tag {tag!r:.80}" if tag else "needs a tag for its weights"
        known = f"its tags are {', '.join(tags)}" if tags else "it has no pretrained weights"
        raise NormswapError(
            f"open_clip:{architecture}: {problem}; {known}; "
            f"open_clip:{architecture}?pretrained=false takes random ones"
        )
    # open_clip only warns when the weights were trained with another GELU than the model's.
    quick = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    return {"pretrained": tag, "require_pretrained": True, "force_quick_gelu": quick}


def _source(label: str, model: Any) -> Source:
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    images = example_images(3, height, width, torch.float32)
    inputs = {"image": images, "text": _texts(model)}
    model.output_dict = True
    try:
        outputs = tuple(tensor_fields(model, inputs))
    except Exception as error:
        raise NormswapError(f"{label}: cannot be run ({first_line(error)})") from error
    return_only(model, list(inputs), outputs)
    axes = {"image": {0: "batch"}, "text": {0: "text_batch"}}
    preprocessing = from_open_clip(getattr(model.visual, "preprocess_cfg", {}), height, width)
    return Source(label, model, (), inputs, axes, outputs, preprocessing)


def _texts(model: Any) -> torch.Tensor:
    tower = getattr(model, "text", model)
    vocabulary = int(model.vocab_size)
    end = vocabulary - 1  # features are read at the largest id
    pool = getattr(tower, "pool_type", getattr(model, "text_pool_type", "argmax"))
    if pool == "eos":
        end = int(getattr(tower, "eos_id", getattr(model, "text_eos_id", end)))
    padding = int(getattr(tower, "pad_id", 0) or 0)
    words = range(min(3, vocabulary - 3), vocabulary - 2)
    start = vocabulary - 2
    return example_texts(int(model.context_length), words, start, end, padding)[0]
