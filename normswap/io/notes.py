"""Notes in a model's file: the preprocessing of its images, the names of its classes, and the
passes that it went through.

They are texts by key: metadata properties of an ``.onnx``, extra files of a ``.pt2``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError
from normswap.io.images import folder_preprocessing
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.preprocessing_configs import named_classes, read_json
from normswap.model import Model, Step, StepFit

PREPROCESSING = "normswap.preprocessing"
CLASSES = "normswap.classes"
_CONFIG = "config.json"
HISTORY = "normswap.history"


def notes_of(model: Model) -> dict[str, str]:
    """The notes to write into the model's file, as JSON by key."""
    notes = {}
    if isinstance(model.preprocessing, Preprocessing):
        notes[PREPROCESSING] = model.preprocessing.to_json()
    if model.classes:
        notes[CLASSES] = json.dumps(model.classes)
    if model.history:
        notes[HISTORY] = json.dumps([asdict(step) for step in model.history])
    return notes


def with_notes(model: Model, read: Callable[[str], str | None]) -> Model:
    """The model with the preprocessing, the classes and the history that its file holds.

    ``read``: gives the note of a key, or None. Where the file has no preprocessing, that of a
    ``preprocessor_config.json`` beside it is taken, or beside its folder, if that is called
    ``onnx``, as in repositories of transformers.js, or belongs to a folder with a ``config.json``;
    so are the classes of a ``config.json``. Never raises: a damaged preprocessing is Unsupported,
    which matters only when it is needed, and what else is damaged is dropped.
    """
    known = _preprocessing(model, read(PREPROCESSING))
    classes = _classes(model, read(CLASSES))
    return replace(model, preprocessing=known, classes=classes, history=_history(read(HISTORY)))


def _preprocessing(model: Model, note: str | None) -> Preprocessing | Unsupported | None:
    if note is not None:
        try:
            return Preprocessing.from_json(note)
        except NormswapError as error:
            return Unsupported(f"what the file holds of it is damaged; {error}")
    for place in _places(model):
        if (found := folder_preprocessing(place, model)) is not None:
            return found
    return None


def _places(model: Model) -> list[Path]:
    """The folders in which a model's file may have its configuration."""
    if model.path is None:
        return []
    folder = model.path.absolute().parent
    whole = folder.name == "onnx" or (folder.parent / _CONFIG).is_file()
    return [folder, folder.parent] if whole else [folder]


def _classes(model: Model, note: str | None) -> tuple[str, ...]:
    try:
        if note is not None:
            held = json.loads(note)
            named = isinstance(held, list) and all(isinstance(name, str) for name in held)
            return tuple(held) if named else ()
        files = [place / _CONFIG for place in _places(model)]
        return next((named_classes(read_json(file)) for file in files if file.is_file()), ())
    except (NormswapError, ValueError, RecursionError):
        return ()


def _history(note: str | None) -> tuple[Step, ...]:
    steps = []
    try:
        for entry in json.loads(note or "[]"):
            name, done, skipped, notes = (entry[k] for k in ("name", "done", "skipped", "notes"))
            sites = entry.get("sites", [])
            kinds = ((name, str), (done, int), (skipped, list), (notes, list), (sites, list))
            if not all(isinstance(value, kind) for value, kind in kinds):
                return ()
            pairs = [(str(site), str(reason)) for site, reason in skipped]
            texts = [str(text) for text in notes]
            fits = [_fit(fit) for fit in entry.get("fits", [])]
            steps.append(Step(name, done, pairs, texts, [str(site) for site in sites], fits))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return ()
    return tuple(steps)


def _fit(held: dict[str, Any]) -> StepFit:
    """Raises TypeError, KeyError or ValueError for what is none."""
    error, count = held["held_out_error"], held["multiply_adds"]
    return StepFit(
        str(held["site"]),
        str(held["form"]),
        None if error is None else float(error),
        None if count is None else int(count),
    )
