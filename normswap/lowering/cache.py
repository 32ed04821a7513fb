"""What was measured on this machine, so that it need not be measured again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError
from normswap.io.atomic import atomic_path
from normswap.lowering.kernels.library import cache_folder
from normswap.runtimes.machine import processor, processors

_SCHEMA = "normswap.tuning/1"


def key_of(*parts: str) -> str:
    """The key of a measurement: of what was measured, and of the machine that did."""
    machine = (platform.machine(), processor(), str(processors()))
    text = "\0".join((_SCHEMA, *machine, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(key: str, fields: Sequence[str]) -> dict[str, Any] | None:
    """What was measured under ``key``: a dictionary with ``fields``; None where there is none, or
    none that can be read."""
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(found, dict) and found.get("schema") == _SCHEMA
    return found if fits and all(field in found for field in fields) else None


def remember(key: str, measured: dict[str, Any]) -> None:
    """Keeps it; where the folder cannot be written it is measured again next time."""
    file = _file(key)
    with contextlib.suppress(OSError, NormswapError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps({"schema": _SCHEMA, **measured}), encoding="utf-8")


def _file(key: str) -> Path:
    return cache_folder() / "tuning" / f"{key}.json"
