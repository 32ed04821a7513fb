"""A ``Source`` from a Hugging Face folder (config.json and safetensors) or a hub id.

The folder is only data: the class that its config names is looked up in the installed
transformers, its weights are read as safetensors, and nothing else in it is opened. In particular
``from_pretrained`` never gets the folder: it would follow adapters to other repositories and load
pickled checkpoint metadata.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from normswap.errors import NormswapError, first_line, plain, quiet
from normswap.io.bounds import check_regular
from normswap.io.preprocessing_configs import (
    from_huggingface,
    named_classes,
    processor_config,
    read_json,
)
from normswap.io.sources import Source, example_images, example_texts, return_only, tensor_fields
from normswap.io.sources.packages import import_extra, reachable_hub

_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
# These choose code to run or to fetch. The attention implementation is passed instead.
_UNSAFE_KEYS = ("auto_map", "fusion_config", "custom_pipelines")
# What a model has as many of as its config says, each with weights.
_COUNTED = ("layer", "depth", "block", "stage")
_LARGEST_NUMBER = 1 << 24  # of what is no count of layers: tokens, labels, pixels
_ROOM = 1 << 26  # numbers that a model may have beside its weights: tables that are computed
_LARGEST_IMAGES = 1 << 24  # elements of the images that a model is tried on
_LONGEST_TEXT = 1 << 15
_SEQUENCE = "sequence"
_IMAGE_AXES, _PADDED_AXES = {0: "batch"}, {0: "text_batch"}
_TEXT_AXES = {0: "text_batch", 1: _SEQUENCE}
_DUAL = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


def huggingface_source(folder_or_id: str) -> Source:
    """The model in a local folder, or on the hub for ``hf:ID``, with its trained weights.

    Its inputs are those of ``pixel_values`` [2, C, H, W], ``input_ids``, ``attention_mask`` and,
    with several types, ``token_type_ids`` [3, L] that it takes, where L may vary unless there are
    images; its outputs logits and embeddings for a dual encoder, ``logits`` for a classifier, else
    every tensor that it returns.
    Raises NormswapError for a folder without config or safetensors, an architecture that
    transformers does not have, damaged, missing or superfluous weights, or a failed download.
    """
    transformers = import_extra("transformers", folder_or_id)
    if folder_or_id.startswith("hf:"):
        name, folder = folder_or_id, _fetch_folder(folder_or_id.removeprefix("hf:"))
    else:
        folder = Path(folder_or_id)
        name = folder.resolve().name
    if not folder.is_dir():
        raise NormswapError(f"{folder}: there is no such folder")
    config = read_json(folder / "config.json")
    model_class = _model_class(transformers, folder, config)
    processor = processor_config(folder)
    weights = _weights(folder)
    _check_counts(folder, config, weights)
    model = _build(folder, model_class, config, weights)
    try:
        return _source(name, model, processor)
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise NormswapError(
            f"{folder}: the sizes of its configuration make no sense ({plain(first_line(error))})"
        ) from error


def _fetch_folder(identifier: str) -> Path:
    """The local folder with the model's config, image processor and safetensors.

    Raises NormswapError if they cannot be fetched.
    """
    with reachable_hub():
        config = _fetch(identifier, "config.json")
        if not _fetch(identifier, "preprocessor_config.json", optional=True):
            _fetch(identifier, "processor_config.json", optional=True)
        if not _fetch(identifier, "model.safetensors", optional=True):
            index = _fetch(identifier, _INDEX, optional=True)
            if index is None:
                raise NormswapError(
                    f"hf:{identifier}: no safetensors of it could be fetched, and pickled weights "
                    "are not loaded; name a local folder"
                )
            for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
                _fetch(identifier, name)
    assert config is not None
    return config.parent


def _fetch(identifier: str, name: str, optional: bool = False) -> Path | None:
    """The file; None for an ``optional`` one that the repository (or the cache, where there is no
    network) does not have."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(identifier, name))
    except Exception as error:  # of the network, the hub or the id itself
        if optional and isinstance(error, EntryNotFoundError):
            return None
        raise NormswapError(
            f"hf:{identifier}: {name} could not be fetched ({first_line(error)}); "
            "check the id and the network, or name a local folder"
        ) from error


def _model_class(transformers: Any, folder: Path, config: dict[str, Any]) -> Any:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(architecture, str):
        raise NormswapError(
            f"{folder}/config.json: names no architecture; add the model's class as "
            '"architectures"'
        )
    known = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if not (isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)):
        raise NormswapError(
            f"{folder}/config.json: transformers {transformers.__version__} has no model "
            f"{architecture!r:.80}; code from the folder is never run"
        )
    if "quantization_config" in config:
        raise NormswapError(f"{folder}: holds a quantised model; save it in float first")
    return known


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        files = [single]
    elif index.is_file():
        mapping = read_json(index).get("weight_map")
        names = {str(name) for name in mapping.values()} if isinstance(mapping, dict) else {""}
        if any(name != Path(name).name or not name for name in names):
            raise NormswapError(f"{index}: names files outside the folder, or none")
        files = [folder / name for name in sorted(names)]
    elif any(file for pattern in _PICKLED for file in folder.glob(pattern)):
        raise NormswapError(
            f"{folder}: holds pickled weights only, which can run code when loaded; "
            "save it again as safetensors"
        )
    else:
        raise NormswapError(f"{folder}: has no model.safetensors; copy the weights into it")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        check_regular(file)
        try:
            weights.update(safetensors.torch.load_file(file))
        except FileNotFoundError as error:
            raise NormswapError(f"{file}: is missing; copy it into the folder") from error
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise NormswapError(
                f"{file}: is damaged ({first_line(error)}); copy it again"
            ) from error
    return weights


def _check_counts(folder: Path, config: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Raises NormswapError where a config asks for more layers than there are weights, or for more
    of anything than could be: each layer takes its time to be built, each label its memory."""
    elements = sum(tensor.numel() for tensor in weights.values())
    pending = [("", config)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, Mapping):
            pending += [(str(name), value) for name, value in item.items()]
        elif isinstance(item, list):
            pending += [(key, value) for value in item]
        elif isinstance(item, int | float) and not isinstance(item, bool):
            layers = any(word in key for word in _COUNTED)
            most = len(weights) if layers else max(elements, _LARGEST_NUMBER)
            if abs(item) > most and (layers or "theta" not in key):
                raise NormswapError(
                    f"{folder}/config.json: {plain(key)} is {plain(item)}, which its "
                    f"{len(weights)} weights are too few for"
                )


def _check_parameters(
    folder: Path, model_class: Any, config: Any, weights: Mapping[str, torch.Tensor]
) -> None:
    """Raises NormswapError where the model that the config describes is much larger than its
    weights, before it takes that memory."""
    with torch.device("meta"):
        model = model_class(config)
    described = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    held = sum(tensor.numel() for tensor in weights.values())
    if described > 2 * held + _ROOM:
        raise NormswapError(
            f"{folder}: its config describes a model of {described:,} numbers, and its weights "
            f"hold {held:,}; they are not of one model"
        )


def _build(
    folder: Path, model_class: Any, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> Any:
    attention = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    try:
        # Its report and progress bars; what matters of them is reported below, in one line.
        with quiet("transformers", stderr=True):
            described = model_class.config_class.from_dict(_without_code(config))
            _check_parameters(folder, model_class, copy.deepcopy(described), weights)
            model, info = model_class.from_pretrained(
                None,
                config=described,
                state_dict=weights,
                attn_implementation=attention,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except NormswapError:
        raise
    except Exception as error:  # a config can be wrong in as many ways as there are models
        raise NormswapError(
            f"{folder}: transformers cannot build {model_class.__name__} from its config "
            f"({first_line(error)})"
        ) from error
    _check_complete(folder, model_class.__name__, info)
    return model


def _without_code(item: Any) -> Any:
    if isinstance(item, list):
        return [_without_code(value) for value in item]
    if not isinstance(item, dict):
        return item
    return {
        key: _without_code(value)
        for key, value in item.items()
        if key not in _UNSAFE_KEYS and not key.endswith(("_implementation", "_internal"))
    }


def _check_complete(folder: Path, architecture: str, info: Mapping[str, Any]) -> None:
    wrong = [str(key) for key, *_ in info["mismatched_keys"]]
    for keys, problem in (
        (info["missing_keys"], "are missing"),
        (wrong, "do not fit its config"),
        (info["unexpected_keys"], "have no place"),
    ):
        if keys:
            raise NormswapError(
                f"{folder}: {len(keys)} of its weights {problem}, first '{plain(min(keys))}'; "
                f"they are not those of a {architecture}, or the folder was not saved whole"
            )
    if info["error_msgs"]:
        raise NormswapError(f"{folder}: {plain(info['error_msgs'][0])}")


def _source(name: str, model: Any, processor: dict[str, Any] | None) -> Source:
    parameters = inspect.signature(type(model).forward).parameters
    reason = "it takes neither images nor texts"
    images = _example_pixels(model, parameters, processor)
    texts = _example_tokens(model.config, parameters)
    for image, text in itertools.product(images, texts):
        inputs = image | text
        if not inputs:
            continue
        try:
            with quiet("transformers"):
                fields = tensor_fields(model, inputs, return_dict=True)
        except Exception as error:  # not made for these inputs, or not for their sizes
            reason = first_line(error)
            continue
        outputs = _wanted_outputs(fields)
        return_only(model, list(inputs), outputs, return_dict=True)
        # Beside images texts are padded to the one length that the model was trained with.
        text_axes = _TEXT_AXES if "pixel_values" not in inputs else _PADDED_AXES
        axes = {key: _IMAGE_AXES if key == "pixel_values" else text_axes for key in inputs}
        preprocessing = None
        if processor is not None and "pixel_values" in inputs:
            preprocessing = from_huggingface(processor, inputs["pixel_values"].shape[1])
        # The texts are of the longest length that its table of positions has.
        longest = {_SEQUENCE: text["input_ids"].shape[1]} if text else {}
        classes = named_classes(model.config.to_dict()) if outputs == ("logits",) else ()
        return Source(name, model, (), inputs, axes, outputs, preprocessing, longest, classes)
    raise NormswapError(
        f"{name}: {type(model).__name__} cannot be run on images and texts alone ({reason}); "
        "load the module in Python with example_inputs"
    )


def _example_tokens(config: Any, parameters: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Texts of the longest length to try on the model; [{}] if it takes none.

    The second length is for RoBERTa, whose positions begin after the padding id.
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
    if not 0 < longest <= _LONGEST_TEXT:
        raise ValueError(f"texts of {longest} tokens")
    words = range(min(3, vocabulary - 1), max(vocabulary - 2, min(3, vocabulary - 1) + 1))
    masked = "attention_mask" in parameters and not kind.startswith("siglip")  # trained without
    types = int(getattr(text, "type_vocab_size", None) or 0)
    typed = "token_type_ids" in parameters and types > 1
    texts = []
    for length in (longest, longest - (pad or 0) - 1):
        tokens, mask = example_texts(length, words, start, end, pad or 0)
        given = {"input_ids": tokens}
        if masked:
            given["attention_mask"] = mask
        if typed:  # two sentences, padded with zeros as the tokenizer does
            given["token_type_ids"] = mask * (torch.arange(length) >= length // 2)
        texts.append(given)
    return texts


def _example_pixels(
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
    for height, width in sizes:
        if not 0 < 2 * channels * height * width <= _LARGEST_IMAGES:
            raise ValueError(f"images of {channels}x{height}x{width}")
    return [
        {"pixel_values": example_images(channels, height, width, model.dtype)}
        for height, width in dict.fromkeys(sizes)
    ]


def _wanted_outputs(fields: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """The logits and embeddings of a dual encoder, a classifier's logits, else every tensor."""
    if "logits_per_image" in fields:
        return tuple(name for name in _DUAL if name in fields)
    return ("logits",) if "logits" in fields else tuple(fields)
