"""The preprocessing that a model's own configuration describes: transformers', timm's, open_clip's.

Each is translated into a ``Preprocessing``, so that a model keeps it without the library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from normswap.errors import NormswapError, plain
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
# What a file leaves out, by its image processor: the defaults of transformers' classes.
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
# do_reduce_labels is about segmentation maps.
_FOLLOWED: Final = (
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb",
    "do_reduce_labels",
)  # fmt: skip


def from_huggingface(
    config: Mapping[str, Any], channels: int | None = None
) -> Preprocessing | Unsupported:
    """The content of a ``preprocessor_config.json``, for a model that takes ``channels``.

    What it leaves out is what transformers' image processor of its type does by default.
    Unsupported for the types that do more than resize, crop, rescale and normalise, and for
    values of the wrong kind.
    """
    try:
        return _from_huggingface(config, channels)
    except NormswapError as error:
        return Unsupported(str(error).removeprefix("preprocessing: "))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        return Unsupported(f"its configuration has a wrong or missing value ({plain(error)})")


def from_timm(data: Mapping[str, Any]) -> Preprocessing | Unsupported:
    """timm's data config (``timm.data.resolve_model_data_config``), as its evaluation
    transform follows it."""
    try:
        channels, height, width = data["input_size"]
        mode = {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
        fill = [round(255 * value) for value in data["mean"]] if mode == "longest" else [0, 0, 0]
        return Preprocessing(
            mode="L" if channels == 1 else "RGB",
            resize=mode,
            size=(math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])),
            resample=_filter_name(data["interpolation"]),
            crop=(height, width),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            fill=tuple(fill),
            margins="torchvision",
        )
    except NormswapError as error:
        return Unsupported(str(error).removeprefix("preprocessing: "))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        return Unsupported(f"its data config has a wrong or missing value ({plain(error)})")


def from_open_clip(
    config: Mapping[str, Any], height: int, width: int
) -> Preprocessing | Unsupported | None:
    """open_clip's ``preprocess_cfg`` for images of this size; None for an empty one.

    open_clip resizes before it converts to RGB, its own data sets convert when they open a file;
    here it is as there.
    """
    if not config:
        return None
    try:
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
    except NormswapError as error:
        return Unsupported(str(error).removeprefix("preprocessing: "))
    except (KeyError, TypeError, ValueError) as error:
        return Unsupported(f"its preprocess_cfg has a wrong or missing value ({plain(error)})")


def _from_huggingface(
    config: Mapping[str, Any], channels: int | None
) -> Preprocessing | Unsupported:
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named or ""))
    if named and kind not in PROCESSORS:
        return Unsupported(f"normswap does not know the image processor {plain(named)}")
    if further := [k for k in config if k.startswith("do_") and config[k] and k not in _FOLLOWED]:
        return Unsupported(f"normswap does not follow its '{plain(further[0])}'")
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


def _written_by_hand(config: Mapping[str, Any]) -> dict[str, Any]:
    """A file without a type does what it has the numbers for."""
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


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * channels


def _filter_name(resample: Any) -> str:
    """The name of a filter given by name or by Pillow's number."""
    if resample == "random":  # timm's for training
        return "bicubic"
    names = {int(number): name for name, number in RESAMPLE.items()}
    return names[resample] if isinstance(resample, int) else str(resample)
