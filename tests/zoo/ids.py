"""Which of the zoo's models a test is about."""

from __future__ import annotations

import re

_MODEL = re.compile(r"[\[-]((?:timm|hf|open_clip|torch|spelled)_\w+)[^\[]*\]$")


def model_of(nodeid: str) -> str | None:
    """The model in the id of a test that is parametrised by models."""
    found = _MODEL.search(nodeid)
    return found[1] if found else None
