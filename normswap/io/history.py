"""What normswap did to a model, kept in its file as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from normswap.model import Step

KEY = "normswap.history"
"""The metadata property of an ``.onnx`` and the note in a ``.pt2``."""


def history_text(history: Sequence[Step]) -> str:
    return json.dumps([asdict(step) for step in history])


def history_of(saved: str | None) -> tuple[Step, ...]:
    """The history that a file holds; none where the text is damaged, for nothing depends on it."""
    try:
        return tuple(_step(entry) for entry in json.loads(saved or "[]"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def _step(entry: dict[str, object]) -> Step:
    name, done, skipped, notes = (entry[key] for key in ("name", "done", "skipped", "notes"))
    if not isinstance(name, str) or not isinstance(done, int):
        raise TypeError
    if not isinstance(skipped, list) or not isinstance(notes, list):
        raise TypeError
    pairs = [(str(site), str(reason)) for site, reason in skipped]
    return Step(name, done, pairs, [str(note) for note in notes])
