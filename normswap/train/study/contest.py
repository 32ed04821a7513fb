"""What a comparison is held on: untrained models and labelled samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from normswap.assets import digits
from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data, load_data, read_arrays
from normswap.io.glyphs import PREFIX, SPLITS, Glyphs
from normswap.model import Model
from normswap.train.study.variants import untrained
from normswap.train.study.vit import IMAGES, deit_shape, digits_shape, vit

_SCORED = 5  # a sample in so many
_CALIBRATED = 64
_HASHED = 4096  # samples at a time


@dataclass(frozen=True)
class Contest:
    """``starts``: the untrained model of each seed. ``train``, ``validation`` (which rates are
    chosen on) and ``test`` have labels. ``scores``: the number of the output that classifies."""

    name: str
    data_name: str
    starts: list[Model]
    train: Data
    validation: Data
    test: Data
    scores: int

    def digest(self) -> str:
        """Of all weights and samples, a hash of 16 digits."""
        found = hashlib.sha256()
        for model in {id(model): model for model in self.starts}.values():
            for name, tensor in sorted(model.to_torch().state_dict().items()):
                found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                found.update(tensor.contiguous().numpy().tobytes())
        for data in (self.train, self.validation, self.test):
            for array in (*data.feeds.values(), data.labels):
                assert array is not None
                found.update(f"{array.shape} {array.dtype}".encode())
                for first in range(0, len(array), _HASHED):
                    found.update(np.ascontiguousarray(array[first : first + _HASHED]).tobytes())
        return found.hexdigest()[:16]

    def check(self, variants: Sequence[str], batch: int) -> None:
        """Raises NormswapError, before any training, for what no run could begin with."""
        model = self.starts[0]
        for spec in model.inputs:
            if spec.shape and isinstance(spec.shape[0], int):
                raise NormswapError(
                    f"{model.name}: its batch is fixed at {spec.shape[0]}; capture it with a "
                    "dynamic batch"
                )
        first = {name: array[:_CALIBRATED] for name, array in self.train.feeds.items()}
        for variant in variants:
            untrained(variant, model, Data(first, None))


def digits_contest(seeds: int) -> Contest:
    """A small ViT, its weights drawn anew for each seed, on scikit-learn's digits: 540 to test on,
    and of the 1257 others a fifth to validate on.

    Raises NormswapError without scikit-learn.
    """
    data = digits.load_digits_split()
    test = Data({IMAGES: data.test_images}, data.test_labels)
    rest = Data({IMAGES: data.train_images}, data.train_labels)
    assert rest.labels is not None
    train, validation = _split(rest, rest.labels)
    starts = [vit(digits_shape(), seed, "digits") for seed in range(seeds)]
    name = starts[0].name
    return Contest(name, "scikit-learn's digits", starts, train, validation, test, 0)


def deit_contest(source: str, width: int, patch: int, seeds: int) -> Contest:
    """A ViT as deep as DeiT, its weights drawn anew for each seed, on ``source``, glyphs:CLASSES.

    Raises NormswapError for another source, and where the fonts have fewer classes.
    """
    glyphs = Glyphs.parse(source)
    shape = deit_shape(width, patch, glyphs.classes)
    starts = [vit(shape, seed, "glyphs") for seed in range(seeds)]
    parts = _glyph_parts(glyphs, starts[0])
    return Contest(starts[0].name, source, starts, *parts, 0)


def _glyph_parts(glyphs: Glyphs, model: Model) -> tuple[Data, Data, Data]:
    """To train, to validate and to test on: of other families of fonts each."""
    train, validation, test = (load_data(replace(glyphs, split=s), model) for s in SPLITS)
    return train, validation, test


def own_contest(model: Model, source: Any, labels: Any, seeds: int) -> Contest:
    """A model and data of the user's; a fifth of the samples is for the test, a fifth of the others
    to validate on. Glyphs come in three parts.

    Raises NormswapError for data that is unfit, lacks an input or labels, and for a model without
    scores for as many classes.
    """
    where = str(source) if isinstance(source, str | Path) else "data"
    if where.startswith(PREFIX) and labels is None:
        parts = _glyph_parts(Glyphs.parse(where), model)
        assert parts[0].labels is not None
        scores = _scores(model, int(parts[0].labels.max()))
        return Contest(model.name, where, [model] * seeds, *parts, scores)
    data = source if isinstance(source, Data) else load_data(source, model)
    for spec in model.inputs:
        if spec.name not in data.feeds:
            raise NormswapError(f"{where}: lacks the input '{spec.name}' of {model.name}")
    targets = _labels(where, data, labels)
    scores = _scores(model, int(targets.max()))
    rest, test = _split(data, targets)
    assert rest.labels is not None
    train, validation = _split(rest, rest.labels)
    if not validation.count:
        raise NormswapError(
            f"{where}: {data.count} samples are too few, a fifth is kept back to test on and a "
            "fifth of the others to validate on"
        )
    return Contest(model.name, where, [model] * seeds, train, validation, test, scores)


def _labels(where: str, data: Data, given: Any) -> Array:
    if isinstance(given, str | Path):
        where, arrays = str(given), read_arrays(Path(given))
        if len(arrays) != 1:
            raise NormswapError(f"{given}: holds {len(arrays)} arrays; give the labels alone")
        given = next(iter(arrays.values()))
    labels = data.labels if given is None else np.asarray(given)
    if labels is None:
        raise NormswapError(
            f"{where}: has no labels to train on; add them (an array 'labels', a subfolder for "
            "each class) or give --labels FILE.npy"
        )
    if labels.shape != (data.count,) or not np.issubdtype(labels.dtype, np.integer):
        shape = "x".join(map(str, labels.shape))
        raise NormswapError(
            f"{where}: labels are integers, one for each of {data.count} samples; got "
            f"{labels.dtype.name} {shape}"
        )
    if labels.min() < 0 or labels.min() == labels.max():
        raise NormswapError(
            f"{where}: labels go from {labels.min()} to {labels.max()}; take 0, 1, ... with two "
            "classes or more"
        )
    return labels.astype(np.int64)


def _split(data: Data, labels: Array) -> tuple[Data, Data]:
    """Four fifths and a fifth to score on, drawn (always the same) from each class alike."""
    mixed = np.random.default_rng(0).permutation(data.count)
    by_class = np.lexsort((mixed, labels))
    scored = np.zeros(data.count, bool)
    scored[by_class[_SCORED - 1 :: _SCORED]] = True
    whole = Data(data.feeds, labels)
    return whole.part(~scored), whole.part(scored)


def _scores(model: Model, highest: int) -> int:
    """The number of the output [N, classes]: the one called logits, or the first of that form."""
    fitting = [
        index
        for index, value in enumerate(model.graph.outputs)
        if value.shape is not None and len(value.shape) == 2 and value.shape[1] > highest
    ]
    named = [index for index in fitting if model.output_names[index] == "logits"]
    if not fitting:
        raise NormswapError(
            f"{model.name}: has no output of scores for {highest + 1} classes, which the labels "
            "need; give a classifier"
        )
    return (named or fitting)[0]
