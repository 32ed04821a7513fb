"""Example inputs of transformers' models by their config, and which outputs to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from normswap.io.source import example_images, example_texts

_DUAL = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


def example_tokens(config: Any, parameters: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Texts to try on the model, as long as it takes; [{}] if it takes none.

    The second is for RoBERTa, whose positions begin behind the padding id.
    """
    if "input_ids" not in parameters:
        return [{}]
    text = getattr(config, "text_config", None) or config
    kind = str(getattr(config, "model_type", ""))
    vocabulary, longest = int(text.vocab_size), int(getattr(text, "max_position_embeddings", 77))
    ids = [getattr(text, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    start, end, pad = (i if isinstance(i, int) and 0 <= i < vocabulary else None for i in ids)
    if kind.startswith("clip") and end in (2, None):
        end = vocabulary - 1  # configs before 2023 have a wrong id; the model takes the largest
    words = range(min(3, vocabulary - 1), max(vocabulary - 2, min(3, vocabulary - 1) + 1))
    masked = "attention_mask" in parameters and not kind.startswith("siglip")  # trained without
    texts = []
    for length in (longest, longest - (pad or 0) - 1):
        tokens, mask = example_texts(length, words, start, end, pad or 0)
        texts.append({"input_ids": tokens} | ({"attention_mask": mask} if masked else {}))
    return texts


def example_pixels(
    model: Any, parameters: Mapping[str, Any], processor: dict[str, Any] | None
) -> list[dict[str, torch.Tensor]]:
    """Images to try on the model; [{}] if it takes none.

    Those of the preprocessor's size come first: some models adapt to it.
    """
    if "pixel_values" not in parameters:
        return [{}]
    vision = getattr(model.config, "vision_config", None) or model.config
    size = getattr(vision, "image_size", 224)
    sizes = [tuple(size) if isinstance(size, list | tuple) else (size, size)]
    given = (processor or {}).get("crop_size") or (processor or {}).get("size")
    if isinstance(given, dict) and all(isinstance(given.get(k), int) for k in ("height", "width")):
        sizes.insert(0, (given["height"], given["width"]))
    channels = getattr(vision, "num_channels", 3)
    return [
        {"pixel_values": example_images(channels, height, width, model.dtype)}
        for height, width in dict.fromkeys(sizes)
    ]


def wanted_outputs(fields: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """The logits and embeddings of a dual encoder, a classifier's logits, else every tensor."""
    if "logits_per_image" in fields:
        return tuple(name for name in _DUAL if name in fields)
    return ("logits",) if "logits" in fields else tuple(fields)
