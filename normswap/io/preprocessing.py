"""``Preprocessing``: what is done to one image before a model sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Final, cast

import numpy as np
from PIL import Image, ImageOps

from normswap.errors import NormswapError, first_line, plain
from normswap.graph.graph import Array

RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
LARGEST_SIDE: Final = 1 << 14
_LARGEST_RESULT: Final = 1 << 24  # pixels
_LONGEST_JSON: Final = 10_000
_VERSION: Final = 1
_CHANNELS: Final = {"RGB": 3, "L": 1}
_CHOICES: Final = {
    "mode": tuple(_CHANNELS),
    "resize": (None, "shortest", "longest", "squash"),
    "resample": tuple(RESAMPLE),
    "margins": ("transformers", "torchvision"),
}


@dataclass(frozen=True)
class Unsupported:
    """A preprocessing that normswap cannot follow, and the reason."""

    reason: str


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an array, in this order.

    1. ``upright``: it is turned as its EXIF orientation says (transformers does so when it opens
       a file, timm and open_clip do not).
    2. It is converted to ``mode``, 'RGB' or 'L' (grey); transparency is dropped.
    3. ``resize``, with the filter ``resample``: 'shortest' or 'longest' (the sides keep their
       ratio, and the image covers ``size`` or fits into it), 'squash' (to ``size``) or None.
       ``size``: (height, width).
    4. ``crop``: (height, width) around its centre, or None. Where the image is smaller it gets
       borders of the colour ``fill``. ``margins``: the rule for halving an odd margin,
       'transformers' or 'torchvision' (also that of timm and open_clip).
    5. ``(pixels * scale - mean) / std`` with pixels 0..255 and a mean and std per channel.

    Raises NormswapError for values of another type or without sense, such as a std of 0.

    Examples:
        >>> imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        >>> Preprocessing("RGB", *imagenet, resize="shortest", size=(256, 256), crop=(224, 224))
    """

    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resize: str | None = None
    size: tuple[int, int] | None = None
    resample: str = "bicubic"
    crop: tuple[int, int] | None = None
    fill: tuple[int, ...] = (0, 0, 0)
    margins: str = "transformers"
    upright: bool = False

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise NormswapError(f"preprocessing: {problem}")

    @property
    def channels(self) -> int:
        """3 or 1."""
        return _CHANNELS[self.mode]

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every result; None where they depend on the image."""
        return self.crop or (self.size if self.resize == "squash" else None)

    def pixels(self, image: Image.Image) -> Array:
        """Steps 1 to 4: uint8 [height, width, channels].

        Raises ValueError for pixels of more than 8 bits, which conversion would clip to white,
        and for an image so elongated that resizing would make it huge.
        """
        if image.mode.startswith(("I", "F")):
            raise ValueError("its pixels have more than 8 bits; save it with 8 bits per channel")
        if self.upright:
            image = ImageOps.exif_transpose(image)
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.resize is not None:
            height, width = self._resized(image.height, image.width)
            largest = Image.MAX_IMAGE_PIXELS
            if largest is not None and height * width > largest:
                raise ValueError(f"it would be resized to {width}x{height} pixels")
            image = image.resize((width, height), RESAMPLE[self.resample])
        if self.crop is not None:
            image = self._cropped(image)
        return np.asarray(image).reshape(image.height, image.width, self.channels)

    def normalised(self, pixels: Array) -> Array:
        """Step 5: float32 [channels, height, width] of uint8 [height, width, channels]."""
        planes = [table[pixels[..., channel]] for channel, table in enumerate(self._table)]
        return np.stack(planes)

    def to_json(self) -> str:
        """One line of JSON that ``from_json`` reads."""
        return json.dumps({"version": _VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Raises NormswapError for anything but what ``to_json`` writes."""
        try:
            content = json.loads(text) if len(text) <= _LONGEST_JSON else None
        except (ValueError, RecursionError) as error:
            raise NormswapError(f"preprocessing: is no JSON ({first_line(error)})") from error
        if not isinstance(content, Mapping):
            raise NormswapError("preprocessing: is no JSON object, or too long")
        values = dict(content)
        if values.pop("version", None) != _VERSION:
            raise NormswapError("preprocessing: was written by another version of normswap")
        if values.keys() != {field.name for field in fields(cls)}:
            raise NormswapError(f"preprocessing: has other fields ({plain(', '.join(values))})")
        pairs = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**cast(dict[str, Any], pairs))

    @cached_property
    def _table(self) -> Array:
        """The results for the pixels 0..255: float32 [channels, 256]."""
        # Rounded as transformers does: to float32 after the scale, then all in float32.
        with np.errstate(all="ignore"):
            scaled = (np.arange(256) * np.float64(self.scale)).astype(np.float32)
            mean, std = (np.asarray(v, np.float32)[:, None] for v in (self.mean, self.std))
            return (scaled - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        assert self.size is not None
        if self.resize == "squash":
            return self.size
        if self.resize == "shortest" and self.size[0] == self.size[1]:
            longer = int(self.size[0] * max(height, width) / min(height, width))
            return (longer, self.size[1]) if width <= height else (self.size[0], longer)
        ratios = height / self.size[0], width / self.size[1]
        ratio = min(ratios) if self.resize == "shortest" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _cropped(self, image: Image.Image) -> Image.Image:
        assert self.crop is not None
        height, width = self.crop
        top, left = self._margin(image.height, height), self._margin(image.width, width)
        if image.height >= height and image.width >= width:
            return image.crop((left, top, left + width, top + height))
        colour = self.fill[: self.channels]
        framed = Image.new(self.mode, (width, height), colour if len(colour) > 1 else colour[0])
        framed.paste(image, (-left, -top))
        return framed

    def _margin(self, have: int, want: int) -> int:
        """How much goes on the near side; negative for a border."""
        down = (have - want) // 2
        if self.margins == "transformers":
            return down
        return round((have - want) / 2) if have >= want else -((want - have) // 2)

    def _problem(self) -> str | None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(map(str, choices))
                return f"{name} is {_shown(getattr(self, name))}, none of {known}"
        if (self.size is None) is not (self.resize is None):
            return "resize and size must be given together"
        for name in ("size", "crop"):
            if not _is_size(getattr(self, name)):
                return f"{name} is {_shown(getattr(self, name))}, not two sizes 1..{LARGEST_SIDE}"
        if self.output_size is not None and math.prod(self.output_size) > _LARGEST_RESULT:
            return f"its results have {math.prod(self.output_size):,} pixels, too many for a batch"
        for name in ("mean", "std"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not all(_is_number(v) for v in given):
                return f"{name} is {_shown(given)}, not numbers"
            if len(given) != self.channels:
                return f"{name} has {len(given)} numbers for {self.channels} channels"
        if min(self.std) <= 0 or not _is_number(self.scale) or self.scale <= 0:
            return "std and scale must be positive"
        if not np.isfinite(self._table).all():
            return "scale, mean and std give NaN or infinite numbers"
        if not (
            isinstance(self.fill, tuple)
            and len(self.fill) in (1, 3)
            and len(self.fill) >= self.channels
            and all(_is_integer(level) and 0 <= level <= 255 for level in self.fill)
        ):
            return f"fill is {_shown(self.fill)}, not a level 0..255 per channel"
        return None if isinstance(self.upright, bool) else "upright is neither true nor false"


def _shown(value: Any) -> str:
    return plain(repr(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return plain_number and abs(value) < 1e30 and math.isfinite(value)


def _is_size(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and all(_is_integer(side) and 1 <= side <= LARGEST_SIDE for side in value)
