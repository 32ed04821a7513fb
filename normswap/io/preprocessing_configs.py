"""The preprocessing that a model's own configuration describes: transformers', timm's, open_clip's.

Each is translated into a ``Preprocessing``, so that a model keeps it without the library.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from normswap.errors import NormswapError, first_line, plain
from normswap.io.bounds import check_regular
from normswap.io.preprocessing import RESAMPLE, Preprocessing, Unsupported

_HALF: Final = (0.5, 0.5, 0.5)
_IMAGENET: Final = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CENTRED: Final = {"image_mean": _HALF, "image_std": _HALF}
_CLIP: Final = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def _squashed(side: int, resample: str = "bicubic") -> dict[str, Any]:
    size = {"height": side, "width": side}
    return {"do_resize": True, "size": size, "resample": RESAMPLE[resample]}


def _covered(side: int) -> dict[str, Any]:
    size = {"shortest_edge": side}
    return {**_squashed(side), "size": size, "default_to_square": False}


def _crop(side: int, wanted: bool = True) -> dict[str, Any]:
    return {"do_center_crop": wanted, "crop_size": {"height": side, "width": side}}


_PLAIN: Final = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_RGB: Final = {"do_convert_rgb": True}
_CLIP_LIKE: Final = {**_PLAIN, **_RGB, **_covered(224), **_crop(224), **_CLIP}
# The defaults of transformers' image processors, for what a file leaves out.
PROCESSORS: Final[dict[str, dict[str, Any]]] = {
    "Beit": {**_PLAIN, **_squashed(224), **_crop(224, False), **_CENTRED},
    "Bit": _CLIP_LIKE,
    "Blip": {**_PLAIN, **_RGB, **_squashed(384), **_CLIP},
    "CLIP": _CLIP_LIKE,
    "ChineseCLIP": _CLIP_LIKE,
    "ConvNext": {**_PLAIN, **_covered(384), **_CENTRED, "crop_pct": 224 / 256},
    "DINOv3ViT": {**_PLAIN, **_squashed(224, "bilinear"), **_IMAGENET},
    "DeiT": {**_PLAIN, **_squashed(256), **_crop(224), **_CENTRED},
    "Levit": {**_PLAIN, **_covered(224), **_crop(224), **_IMAGENET},
    "OwlViT": {**_PLAIN, **_RGB, **_squashed(768), **_crop(768, False), **_CLIP},
    "PoolFormer": {**_PLAIN, **_covered(224), **_crop(224), **_IMAGENET, "crop_pct": 0.9},
    "Pvt": {**_PLAIN, **_squashed(224), **_IMAGENET},
    "Segformer": {**_PLAIN, **_squashed(512, "bilinear"), **_IMAGENET},
    "Siglip": {**_PLAIN, **_RGB, **_squashed(224), **_CENTRED, "default_to_square": False},
    "ViT": {**_PLAIN, **_squashed(224, "bilinear"), **_CENTRED},
}
_CONFIGS: Final = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
# do_reduce_labels is about segmentation maps.
_FOLLOWED: Final = (
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb",
    "do_reduce_labels",
)  # fmt: skip


P = ParamSpec("P")
T = TypeVar("T")


def _translates(what: str) -> Callable[[Callable[P, T]], Callable[P, T | Unsupported]]:
    """Makes a function return Unsupported where the configuration, called ``what``, is wrong."""

    def decorate(translate: Callable[P, T]) -> Callable[P, T | Unsupported]:
        @functools.wraps(translate)
        def translated(*args: P.args, **kwargs: P.kwargs) -> T | Unsupported:
            try:
                return translate(*args, **kwargs)
            except NormswapError as error:
                return Unsupported(str(error).removeprefix("preprocessing: "))
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                return Unsupported(f"its {what} has a wrong or missing value ({plain(error)})")

        return translated

    return decorate


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


def named_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's classes in the order of its scores, as ``id2label`` of its
    ``config.json`` has them. None where it has numbers for names, or is damaged."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping):
        return ()
    named = {str(number): name for number, name in labels.items() if isinstance(name, str)}
    names = tuple(named.get(str(number), "") for number in range(len(labels)))
    known = all(names) and len(set(names)) == len(names)
    return names if known and not all(re.fullmatch("LABEL_[0-9]+", n) for n in names) else ()


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a Hugging Face folder.

    Raises NormswapError naming a file that is missing or damaged.
    """
    check_regular(file)
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


@_translates("configuration")
def from_huggingface(config: Mapping[str, Any], channels: int | None = None) -> Preprocessing:
    """The content of a ``preprocessor_config.json``, for a model that takes ``channels``.

    Values that it leaves out are the defaults of transformers' image processor of its type.
    Unsupported for types that do more than resize, crop, rescale and normalise, and for values of
    the wrong kind.
    """
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named or ""))
    if named and kind not in PROCESSORS:
        raise NormswapError(f"normswap does not know the image processor {plain(named)}")
    if further := [k for k in config if k.startswith("do_") and config[k] and k not in _FOLLOWED]:
        raise NormswapError(f"normswap does not follow its '{plain(further[0])}'")
    values = {**(PROCESSORS[kind] if named else _written_by_hand(config))}
    values |= {key: value for key, value in config.items() if value is not None}
    mode = _mode(values, channels)
    count = 3 if mode == "RGB" else 1
    unit = {"image_mean": 0.0, "image_std": 1.0}
    normalise = values if values["do_normalize"] else unit
    return Preprocessing(
        mode=mode,
        scale=values["rescale_factor"] if values["do_rescale"] else 1.0,
        mean=_per_channel(normalise["image_mean"], count),
        std=_per_channel(normalise["image_std"], count),
        resample=_filter_name(values.get("resample", RESAMPLE["bilinear"])),
        upright=True,
        **_geometry(kind, values),
    )


@_translates("data config")
def from_timm(data: Mapping[str, Any]) -> Preprocessing:
    """What timm's evaluation transform does for a data config
    (``timm.data.resolve_model_data_config``)."""
    channels, height, width = data["input_size"]
    mean, std = (_for_channels(data[key], channels, key) for key in ("mean", "std"))
    mode = {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
    fill = [round(255 * value) for value in mean] if mode == "longest" else [0] * channels
    return Preprocessing(
        mode="L" if channels == 1 else "RGB",
        resize=mode,
        size=(math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])),
        resample=_filter_name(data["interpolation"]),
        crop=(height, width),
        mean=mean,
        std=std,
        fill=tuple(fill),
        margins="torchvision",
    )


@_translates("preprocess_cfg")
def from_open_clip(config: Mapping[str, Any], height: int, width: int) -> Preprocessing | None:
    """open_clip's ``preprocess_cfg`` for images of this size; None for an empty one.

    open_clip resizes before it converts to RGB, but its data sets convert when they open a file;
    here the conversion comes first, too.
    """
    if not config:
        return None
    mode = config.get("resize_mode") or "shortest"
    bilinear = config.get("interpolation") == "bilinear"
    if mode == "shortest" and height != width:
        bilinear = False  # so does open_clip
    level = config.get("fill_color") or 0
    return Preprocessing(
        mode="RGB",
        resize=mode,
        size=(height, width),
        resample="bilinear" if bilinear else "bicubic",
        crop=None if mode == "squash" else (height, width),
        mean=_per_channel(config["mean"], 3),
        std=_per_channel(config["std"], 3),
        fill=(level, level, level),
        margins="torchvision",
    )


def _written_by_hand(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults for a file without a type: the steps that it has numbers for."""
    return {
        **_PLAIN,
        "do_resize": "size" in config,
        "do_center_crop": "crop_size" in config,
        "do_normalize": "image_mean" in config or "image_std" in config,
    }


def _mode(values: Mapping[str, Any], channels: int | None) -> str:
    if channels is not None and channels not in (1, 3):
        raise NormswapError(f"the model takes images of {channels} channels, not 1 or 3")
    mean = values.get("image_mean")
    single = isinstance(mean, list | tuple) and len(mean) == 1
    grey = single if channels is None else channels == 1
    return "L" if grey and not values.get("do_convert_rgb") else "RGB"


def _geometry(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    crop = None
    if values.get("do_center_crop"):
        crop = _sides(values["crop_size"])
    if not values["do_resize"]:
        return {"crop": crop}
    size = values["size"]
    if isinstance(size, int) and not values.get("default_to_square", True):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping):
        size = {key: side for key, side in size.items() if side is not None}
    if not isinstance(size, Mapping) or set(size) == {"height", "width"}:
        mode, sides = "squash", _sides(size)
    elif set(size) == {"shortest_edge"}:
        mode, sides = "shortest", _sides(size["shortest_edge"])
    else:
        raise NormswapError(f"normswap does not resize to {plain(size)}")
    if kind == "ConvNext":
        if mode != "shortest" or crop is not None:
            raise NormswapError("a ConvNext processor takes size.shortest_edge and crops itself")
        if sides[0] >= 384:
            return {"resize": "squash", "size": sides}
        return {"resize": mode, "size": _divided(sides, values["crop_pct"]), "crop": sides}
    if kind == "PoolFormer":
        mode = "shortest" if sides[0] == sides[1] else mode
        sides = _divided(sides, values["crop_pct"])
    if kind == "Levit" and mode == "shortest":
        sides = int(256 / 224 * sides[0]), int(256 / 224 * sides[1])
    return {"resize": mode, "size": sides, "crop": crop}


def _divided(sides: tuple[int, int], share: float) -> tuple[int, int]:
    return int(sides[0] / share), int(sides[1] / share)


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of what transformers takes for a size: a number, a pair or a mapping."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    if isinstance(size, list | tuple):
        height, width = size
        return height, width
    return size, size


def _for_channels(values: Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    """One of ``values`` for each channel: they are the colours', and one for all where they are
    equal."""
    if channels not in (1, 3):
        raise NormswapError(f"its images have {channels} channels, not 1 or 3")
    if len(set(values)) == 1:
        return (values[0],) * channels
    if len(values) != channels:
        raise NormswapError(f"its {what} is of {len(values)} channels, its images have {channels}")
    return tuple(values)


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * channels


def _filter_name(resample: Any) -> str:
    """The name of a filter given by name or by Pillow's number."""
    if resample == "random":  # timm's for training
        return "bicubic"
    names = {int(number): name for name, number in RESAMPLE.items()}
    return names[resample] if isinstance(resample, int) else str(resample)
