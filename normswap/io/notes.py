"""Notes in a model's file: the preprocessing of its images, and the passes that it went through.

They are texts by key: metadata properties of an ``.onnx``, extra files of a ``.pt2``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

from normswap.errors import NormswapError
from normswap.io.images import image_input
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.preprocessing_configs import from_huggingface, processor_config
from normswap.model import Model, Step

PREPROCESSING = "normswap.preprocessing"
HISTORY = "normswap.history"


def notes_of(model: Model) -> dict[str, str]:
    """The notes to write into the model's file, as JSON by key."""
    notes = {}
    if isinstance(model.preprocessing, Preprocessing):
        notes[PREPROCESSING] = model.preprocessing.to_json()
    if model.history:
        notes[HISTORY] = json.dumps([asdict(step) for step in model.history])
    return notes


def with_notes(model: Model, read: Callable[[str], str | None]) -> Model:
    """The model with the preprocessing and the history that its file holds.

    ``read``: gives the note of a key, or None. Where the file has no preprocessing, that of a
    ``preprocessor_config.json`` beside it is taken, or beside its folder, if that is called
    ``onnx``, as in repositories of transformers.js. Never raises: a damaged preprocessing is
    Unsupported, which matters only when it is needed, and a damaged history is dropped.
    """
    known = _preprocessing(model, read(PREPROCESSING))
    return replace(model, preprocessing=known, history=_history(read(HISTORY)))


def _preprocessing(model: Model, note: str | None) -> Preprocessing | Unsupported | None:
    if note is not None:
        try:
            return Preprocessing.from_json(note)
        except NormswapError as error:
            return Unsupported(f"what the file holds of it is damaged; {error}")
    if model.path is None:
        return None
    folder = model.path.absolute().parent
    spec = image_input(model.inputs)
    channels = spec.shape[1] if spec is not None and len(spec.shape) == 4 else None
    for place in [folder, folder.parent] if folder.name == "onnx" else [folder]:
        try:
            config = processor_config(place)
        except NormswapError as error:
            return Unsupported(str(error))
        if config is not None:
            return from_huggingface(config, channels if isinstance(channels, int) else None)
    return None


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
            steps.append(Step(name, done, pairs, texts, [str(site) for site in sites]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()
    return tuple(steps)
