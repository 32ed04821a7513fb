"""The samples of a training run, in memory or in a folder, and which of them a step sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from normswap import distributed
from normswap.graph.graph import Array
from normswap.io.data import LABELS, Data
from normswap.io.images import (
    folder_labels,
    known_preprocessing,
    list_images,
    opener,
    prepare,
    required_image_input,
    with_folder_preprocessing,
)
from normswap.model import Model
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


def in_memory(data: Data, name: str, some: int) -> Samples:
    """Samples that are loaded already, ``some`` of them at hand."""
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


def in_folder(folder: Path, model: Model, some: int, samples: int | None) -> Samples:
    """Images that are read when their turn comes, by the process whose turn it is."""
    spec = required_image_input(str(folder), model)
    model = with_folder_preprocessing(folder, model)
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


def sample_indices(count: int, batch: int, seed: int, step: int) -> Array:
    """Which of ``count`` samples are in the batch of a step; integers [batch].

    Every epoch is a permutation of its own. A batch may end one and begin the next, so that there
    is no last one that is smaller, and samples are seen equally often.
    """
    parts, first, end = [], step * batch, (step + 1) * batch
    while first < end:
        epoch, offset = divmod(first, count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        parts.append(order[offset : offset + end - first])
        first += len(parts[-1])
    return np.concatenate(parts)


def own_indices(count: int, batch: int, seed: int, step: int, parts: int = 1) -> Array:
    """Those of them that are this process's, an equal share.

    The batch is split into ``parts`` (``TrainOptions.accumulate``) first and each of them among the
    processes, so that what a BatchNorm sees at once is the same for any number of processes.
    """
    indices = sample_indices(count, batch, seed, step).reshape(parts, distributed.world(), -1)
    return np.asarray(indices[:, distributed.rank()].reshape(-1))


def shuffled(
    arrays: Mapping[str, Array], batch: int, seed: int, parts: int = 1
) -> Callable[[int], dict[str, torch.Tensor]]:
    """What ``train`` takes, of arrays in memory by name, [N, ...] each."""
    count = len(next(iter(arrays.values())))

    def at(step: int) -> dict[str, torch.Tensor]:
        own = own_indices(count, batch, seed, step, parts)
        return {name: torch.from_numpy(np.array(array[own])) for name, array in arrays.items()}

    return at
