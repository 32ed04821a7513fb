"""What all runs of a comparison share, as files, so that any process can do any run."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normswap.graph.graph import Array
from normswap.io.atomic import atomic_path
from normswap.io.data import Data
from normswap.io.load import load
from normswap.io.save import save
from normswap.model import Model
from normswap.train.loop import TrainOptions
from normswap.train.study.runs import Run

TARGETS = "the labels"  # no input has such a name
_WARM_UP = 20  # one step in so many


@dataclass(frozen=True)
class Workload:
    """``start``: the untrained model of each seed, .pt2. ``train``, ``test``: .npy by input name,
    and the labels as ``TARGETS``. ``scores``: the number of the output that classifies. ``runs``:
    the folder for results."""

    start: Mapping[int, Path]
    train: Mapping[str, Path]
    test: Mapping[str, Path]
    scores: int
    steps: int
    batch: int
    runs: Path

    def options(self, run: Run) -> TrainOptions:
        """AdamW as DeiT has it, without gradient clipping: that would hide crashes."""
        warm_up = self.steps // _WARM_UP
        return TrainOptions(self.steps, self.batch, run.rate, warm_up, clip=None, seed=run.seed)


def write_workload(
    folder: Path,
    starts: Sequence[Model],
    train: Data,
    test: Data,
    scores: int,
    steps: int,
    batch: int,
    runs: Path,
) -> Workload:
    """Puts it all into ``folder``. ``starts``: one model for each seed; the same object only once.

    Raises NormswapError if it cannot be written.
    """
    start: dict[int, Path] = {}
    written: dict[int, Path] = {}
    for seed, model in enumerate(starts):
        if id(model) not in written:
            written[id(model)] = folder / f"start-{seed}.pt2"
            save(model, written[id(model)])
        start[seed] = written[id(model)]
    return Workload(
        start,
        _write_arrays(folder, "train", train),
        _write_arrays(folder, "test", test),
        scores,
        steps,
        batch,
        runs,
    )


def _write_arrays(folder: Path, name: str, data: Data) -> dict[str, Path]:
    assert data.labels is not None
    paths = {}
    for index, (key, array) in enumerate([*data.feeds.items(), (TARGETS, data.labels)]):
        paths[key] = folder / f"{name}-{index}.npy"
        with atomic_path(paths[key]) as file, open(file, "wb") as stream:
            np.save(stream, array, allow_pickle=False)
    return paths


@functools.lru_cache(maxsize=4)
def start_model(path: Path) -> Model:
    """An untrained model; not to be changed."""
    return load(path)


def arrays(paths: Mapping[str, Path]) -> dict[str, Array]:
    """Mapped from their files."""
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def without_targets(named: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in named.items() if name != TARGETS}
