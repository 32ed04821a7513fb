"""Where a training run's samples come from: memory, a folder of images, or shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normswap import distributed
from normswap.graph.graph import Array
from normswap.io.data import LABELS, Data, load_data
from normswap.io.images import (
    folder_labels,
    known_preprocessing,
    list_images,
    opener,
    prepare,
    required_image_input,
)
from normswap.model import Model, Progress
from normswap.train.batches import own_indices, shuffled
from normswap.train.options import TrainOptions

Batches = Callable[[int], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Samples:
    """``batches(options)``: the function of the step that ``train`` takes. ``some``: a part of
    the data in memory, the same in all processes. ``count``: of all samples."""

    name: str
    count: int
    some: Data
    batches: Callable[[TrainOptions], Batches]
    notes: list[str] = field(default_factory=list)


def open_samples(
    source: Any,
    model: Model,
    some: int,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Samples:
    """The samples of what ``load_data`` takes, or of shards that a pattern ending in .tar names.

    ``some`` of them are at hand. ``samples``: take that many only; not of shards. Of several
    processes each reads from a folder, and from shards, only what it trains on.
    Raises NormswapError for what ``load_data`` and ``shard_samples`` refuse.
    """
    if isinstance(source, str) and source.endswith(".tar"):
        from normswap.train.sharded_data import shard_samples

        return shard_samples(source, model, some, samples)
    name = str(source) if isinstance(source, str | Path) else "data"
    if isinstance(source, str | Path) and Path(source).is_dir() and distributed.world() > 1:
        return _in_folder(Path(source), model, some, samples)
    given = isinstance(source, Data) and samples is None
    data = source if given else load_data(source, model, samples, progress=progress)
    return _in_memory(data, name, some)


def _in_memory(data: Data, name: str, some: int) -> Samples:
    labels = {} if data.labels is None else {LABELS: data.labels}
    arrays = {**data.feeds, **labels}
    chosen = _choice(data.count, some)
    part = Data(
        {n: a[chosen] for n, a in data.feeds.items()},
        None if data.labels is None else data.labels[chosen],
    )

    def batches(options: TrainOptions) -> Batches:
        return shuffled(arrays, options.batch, options.seed, options.accumulate)

    return Samples(name, data.count, part, batches)


def _in_folder(folder: Path, model: Model, some: int, samples: int | None) -> Samples:
    """Images that are read when their turn comes, by the process whose turn it is."""
    spec = required_image_input(str(folder), model)
    preprocessing = known_preprocessing(str(folder), model, spec)
    files = list_images(folder)
    labels = folder_labels(files, model)
    kept = _choice(len(files), len(files) if samples is None else samples)
    files = [files[index] for index in kept]
    labels = None if labels is None else labels[kept]

    def read(indices: Array) -> dict[str, Array]:
        chosen = [files[index] for index in indices]
        names = [file.as_posix() for file in chosen]
        images = prepare(str(folder), names, opener(folder, chosen), preprocessing, spec)
        return {spec.name: images} | ({} if labels is None else {LABELS: labels[indices]})

    def batches(options: TrainOptions) -> Batches:
        size, seed, parts = options.batch, options.seed, options.accumulate

        def at(step: int) -> dict[str, torch.Tensor]:
            own = read(own_indices(len(files), size, seed, step, parts))
            return {name: torch.from_numpy(np.asarray(array)) for name, array in own.items()}

        return at

    part = read(_choice(len(files), some))
    return Samples(str(folder), len(files), Data(part, part.pop(LABELS, None)), batches)


def _choice(count: int, wanted: int) -> Array:
    """The samples that ``load_data`` keeps of ``count``."""
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))
