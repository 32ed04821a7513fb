"""What a comparison is held on: untrained models and labelled samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from normswap.assets import digits
from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data, load_data, read_arrays
from normswap.io.sources import Source, example_images
from normswap.io.sources.packages import import_extra
from normswap.io.torch_model import model_from_source
from normswap.model import Model
from normswap.train.study.variants import untrained

_TESTED = 5  # a sample in so many
_CALIBRATED = 64
_HASHED = 4096  # samples at a time


@dataclass(frozen=True)
class Contest:
    """``starts``: the untrained model of each seed. ``train`` and ``test`` have labels. ``scores``:
    the number of the output that classifies."""

    name: str
    data_name: str
    starts: list[Model]
    train: Data
    test: Data
    scores: int

    def digest(self) -> str:
        """Of all weights and samples, a hash of 16 digits."""
        found = hashlib.sha256()
        for model in {id(model): model for model in self.starts}.values():
            for name, tensor in sorted(model.to_torch().state_dict().items()):
                found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                found.update(tensor.contiguous().numpy().tobytes())
        for data in (self.train, self.test):
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


def default_contest(seeds: int) -> Contest:
    """A small ViT, its weights drawn anew for each seed, on scikit-learn's digits."""
    train, test = digits_data()
    starts = [digits_vit(seed) for seed in range(seeds)]
    return Contest(starts[0].name, "scikit-learn's digits", starts, train, test, 0)


def own_contest(model: Model, source: Any, labels: Any, seeds: int) -> Contest:
    """A model and data of the user's; a fifth of the samples is for the test.

    Raises NormswapError for data that is unfit, lacks an input or labels, and for a model without
    scores for as many classes.
    """
    where = str(source) if isinstance(source, str | Path) else "data"
    data = source if isinstance(source, Data) else load_data(source, model)
    for spec in model.inputs:
        if spec.name not in data.feeds:
            raise NormswapError(f"{where}: lacks the input '{spec.name}' of {model.name}")
    targets = _labels(where, data, labels)
    scores = _scores(model, int(targets.max()))
    train, test = _split(data, targets)
    if not test.count:
        raise NormswapError(
            f"{where}: {data.count} samples are too few, a fifth is kept back to test on"
        )
    return Contest(model.name, where, [model] * seeds, train, test, scores)


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
    """A part to train on and a fifth to test on, drawn (always the same) from each class alike."""
    mixed = np.random.default_rng(0).permutation(data.count)
    by_class = np.lexsort((mixed, labels))
    tested = np.zeros(data.count, bool)
    tested[by_class[_TESTED - 1 :: _TESTED]] = True
    train, test = (
        Data({name: array[chosen] for name, array in data.feeds.items()}, labels[chosen])
        for chosen in (~tested, tested)
    )
    return train, test


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


IMAGES, LOGITS = "pixel_values", "logits"
WIDTH, DEPTH, HEADS = 32, 6, 4
# 0.02, the usual one, is for widths of 200 and up: this narrow it takes ten times as many steps.
_INITIAL_STD = 0.1


def digits_vit(seed: int) -> Model:
    """transformers' ViTForImageClassification for 8x8 digits with random weights of ``seed``.

    Patch 2, so 16 patches and a class token; pre-norm, LayerNorm; input ``pixel_values`` float32
    [N, 1, 8, 8], output ``logits`` [N, 10]. Raises NormswapError without transformers.
    """
    transformers: Any = import_extra("transformers", "normswap compare without MODEL", "demo")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        encoder_stride=2,
        num_channels=1,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=_INITIAL_STD,
        num_labels=len(digits.WORDS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _Logits(transformers.ViTForImageClassification(config))
    images = example_images(1, 8, 8, torch.float32)
    axes = {IMAGES: {0: "batch"}}
    name = f"a ViT of width {WIDTH} and depth {DEPTH} on 8x8 digits"
    return model_from_source(Source(name, module, (images,), {}, axes, (LOGITS,)))


def digits_data() -> tuple[Data, Data]:
    """The 1257 training and 540 test images with their labels.

    Raises NormswapError without scikit-learn.
    """
    data = digits.load_digits_split()
    train = Data({IMAGES: data.train_images}, data.train_labels)
    return train, Data({IMAGES: data.test_images}, data.test_labels)


class _Logits(nn.Module):
    """Returns the scores alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.vit = inner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.vit(pixel_values=pixel_values).logits
        return logits
