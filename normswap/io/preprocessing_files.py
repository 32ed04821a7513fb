"""Where the preprocessing of a model file is kept: in the file, or in a configuration beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError, first_line
from normswap.io.image_input import image_input
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.preprocessing_configs import from_huggingface
from normswap.model import InputSpec

KEY = "normswap.preprocessing"
"""The metadata property of an ``.onnx`` and the note in a ``.pt2`` that hold it as JSON."""

_CONFIGS = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))


def preprocessing_of_file(
    path: Path | None, inputs: Sequence[InputSpec], saved: str | None
) -> Preprocessing | Unsupported | None:
    """The preprocessing of the model at ``path``: ``saved``, what the file itself holds of it,
    else a ``preprocessor_config.json`` beside it (or beside its folder, if that is called
    ``onnx``, as in repositories of transformers.js).

    Never raises: a damaged one is Unsupported, and matters only to those who need it.
    """
    if saved is not None:
        try:
            return Preprocessing.from_json(saved)
        except NormswapError as error:
            return Unsupported(f"what the file holds of it is damaged; {error}")
    if path is None:
        return None
    folder = path.absolute().parent
    spec = image_input(inputs)
    axis = spec.shape[1] if spec is not None and len(spec.shape) == 4 else None
    for place in [folder, folder.parent] if folder.name == "onnx" else [folder]:
        try:
            config = processor_config(place)
        except NormswapError as error:
            return Unsupported(str(error))
        if config is not None:
            return from_huggingface(config, axis if isinstance(axis, int) else None)
    return None


def processor_config(folder: Path) -> dict[str, Any] | None:
    """The image processor's configuration in a Hugging Face folder, if there is one.

    Raises NormswapError naming a file that is damaged.
    """
    for name, key in _CONFIGS:
        if (folder / name).is_file():
            content = read_json(folder / name)
            held = content if key is None else content.get(key)
            if isinstance(held, dict):
                return held
    return None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a Hugging Face folder.

    Raises NormswapError naming a file that is missing or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NormswapError(
            f"{file.parent}: has no {file.name}; name a folder that save_pretrained wrote"
        ) from error
    except OSError as error:
        raise NormswapError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise NormswapError(f"{file}: is damaged ({first_line(error)}); copy it again") from error
    if not isinstance(content, dict):
        raise NormswapError(f"{file}: is damaged (no JSON object); copy it again")
    return content
