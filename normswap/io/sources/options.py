"""What stands behind the name of a model in ``NAME?OPTION=VALUE&...``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from normswap.errors import NormswapError, plain

_MOST_CLASSES: Final = 1 << 20
_LARGEST_SIDE: Final = 1 << 13
_MOST_CHANNELS: Final = 1 << 10


@dataclass(frozen=True)
class SourceOptions:
    """How a model is built by name. ``pretrained``: with the weights that its package fetches.
    ``checkpoint``: with those of this file instead. ``num_classes``: of its classifier, 0 for none.
    ``img_size``, ``in_chans``: height and width of its images, and their channels. None leaves it
    to the package."""

    pretrained: bool = True
    checkpoint: Path | None = None
    num_classes: int | None = None
    img_size: tuple[int, int] | None = None
    in_chans: int | None = None


def _flag(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


def _file(text: str) -> Path | None:
    return Path(text) if text else None


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,7}", text) and int(text) <= _MOST_CLASSES else None


def _channels(text: str) -> int | None:
    number = _count(text)
    return number if number is not None and 0 < number <= _MOST_CHANNELS else None


def _sides(text: str) -> tuple[int, int] | None:
    match = re.fullmatch("([0-9]{1,4})(?:x([0-9]{1,4}))?", text)
    if match is None:
        return None
    sides = int(match[1]), int(match[2] or match[1])
    return sides if min(sides) > 0 and max(sides) <= _LARGEST_SIDE else None


OPTIONS: Final[Mapping[str, tuple[Callable[[str], Any], str]]] = {
    "pretrained": (_flag, "true or false"),
    "checkpoint": (_file, "a file of weights"),
    "num_classes": (_count, f"a number up to {_MOST_CLASSES:,}"),
    "img_size": (_sides, "a size such as 384 or 224x384"),
    "in_chans": (_channels, f"a number from 1 to {_MOST_CHANNELS:,}"),
}


def split_options(text: str, prefix: str, *further: str) -> tuple[str, SourceOptions]:
    """The name and the options of ``NAME?OPTION=VALUE&...``. Values stand as they are, without
    escapes: a path must not have an ``&``.

    ``further``: those that are known besides ``pretrained`` and ``checkpoint``. Raises
    NormswapError for another option, a value that is none, and an option that is given twice.
    """
    name, mark, query = text.partition("?")
    known = ("pretrained", "checkpoint", *further)
    values: dict[str, Any] = {}
    for part in query.split("&") if mark else ():
        option, _, value = part.partition("=")
        if option not in known:
            raise NormswapError(
                f"{prefix}{name}: unknown option '{plain(option)}'; it takes {', '.join(known)}"
            )
        if option in values:
            raise NormswapError(f"{prefix}{name}: {option} is given twice; give it once")
        read, kind = OPTIONS[option]
        values[option] = read(value)
        if values[option] is None:
            raise NormswapError(f"{prefix}{name}: {option}={plain(value)} is not {kind}")
    return name, SourceOptions(**values)


def square_side(patches: int, patch: int) -> int | None:
    """The side of the square image that has so many patches of that side; None if none has."""
    rows = math.isqrt(max(patches, 0))
    return rows * patch if rows and rows**2 == patches else None
