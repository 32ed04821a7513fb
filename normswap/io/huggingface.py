"""A ``Source`` from a Hugging Face folder (config.json and safetensors) or a hub id.

The folder is data: the class that its config names is looked up in the installed transformers,
its weights are read as safetensors, and nothing else in it is opened. In particular
``from_pretrained`` is not let loose on it, which would follow adapters to other repositories and
load pickled checkpoint metadata.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from normswap.errors import NormswapError, first_line, plain, quiet
from normswap.io.extras import import_extra
from normswap.io.forward import return_only, tensor_fields
from normswap.io.hub import fetch_folder
from normswap.io.huggingface_inputs import example_pixels, example_tokens, wanted_outputs
from normswap.io.preprocessing_configs import from_huggingface
from normswap.io.preprocessing_files import processor_config, read_json
from normswap.io.source import Source

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
# These pick code to run or fetch; "sdpa" is passed instead.
_UNSAFE_KEYS = ("auto_map", "fusion_config", "custom_pipelines")


def huggingface_source(folder_or_id: str) -> Source:
    """The model in a local folder, or on the hub for ``hf:ID``, with its trained weights.

    Its inputs are those of ``pixel_values`` [2, C, H, W], ``input_ids`` [3, L] and
    ``attention_mask`` [3, L] that it takes; its outputs logits and embeddings for a dual encoder,
    ``logits`` for a classifier, else every tensor that it returns.
    Raises NormswapError for a folder without config or safetensors, an architecture that
    transformers does not have, damaged, missing or superfluous weights, or a failed download.
    """
    transformers = import_extra("transformers", folder_or_id)
    if folder_or_id.startswith("hf:"):
        name, folder = folder_or_id, fetch_folder(folder_or_id.removeprefix("hf:"))
    else:
        folder = Path(folder_or_id)
        name = folder.resolve().name
    if not folder.is_dir():
        raise NormswapError(f"{folder}: there is no such folder")
    config = read_json(folder / "config.json")
    model_class = _model_class(transformers, folder, config)
    processor = processor_config(folder)
    model = _build(folder, model_class, config, _weights(folder))
    return _source(name, model, processor)


def _model_class(transformers: Any, folder: Path, config: dict[str, Any]) -> Any:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(architecture, str):
        raise NormswapError(
            f"{folder}/config.json: names no architecture; add the model's class as "
            '"architectures"'
        )
    found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise NormswapError(
            f"{folder}/config.json: transformers {transformers.__version__} has no model "
            f"{architecture!r:.80}; code from the folder is never run"
        )
    if "quantization_config" in config:
        raise NormswapError(f"{folder}: holds a quantised model; save it in float first")
    return found


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
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
        try:
            weights.update(safetensors.torch.load_file(file))
        except FileNotFoundError as error:
            raise NormswapError(f"{file}: is missing; copy it into the folder") from error
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            reason = first_line(error)
            raise NormswapError(f"{file}: is damaged ({reason}); copy it again") from error
    return weights


def _build(
    folder: Path, model_class: Any, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> Any:
    attention = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    try:
        # Its report and progress bars; what matters of them is told below, in one line.
        with quiet("transformers", stderr=True):
            model, info = model_class.from_pretrained(
                None,
                config=model_class.config_class.from_dict(_without_code(config)),
                state_dict=weights,
                attn_implementation=attention,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
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
    images = example_pixels(model, parameters, processor)
    texts = example_tokens(model.config, parameters)
    for inputs in (image | text for image in images for text in texts if image or text):
        try:
            with quiet("transformers"):
                fields = tensor_fields(model, inputs, return_dict=True)
        except Exception as error:  # not made for these inputs, or not for their sizes
            reason = first_line(error)
            continue
        outputs = wanted_outputs(fields)
        return_only(model, list(inputs), outputs, return_dict=True)
        axes = {key: {0: "batch" if key == "pixel_values" else "text_batch"} for key in inputs}
        preprocessing = None
        if processor is not None and "pixel_values" in inputs:
            preprocessing = from_huggingface(processor, inputs["pixel_values"].shape[1])
        return Source(name, model, (), inputs, axes, outputs, preprocessing)
    raise NormswapError(
        f"{name}: {type(model).__name__} cannot be run on images and texts alone ({reason}); "
        "load the module in Python with example_inputs"
    )
