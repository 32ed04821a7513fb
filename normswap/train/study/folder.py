"""The folder of a comparison: what all runs share, the runs, and what it ends with."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array
from normswap.io.atomic import atomic_path, check_writable
from normswap.io.data import Data
from normswap.io.load import load
from normswap.io.save import save
from normswap.model import Model
from normswap.train.options import TrainOptions
from normswap.train.study.contest import Contest
from normswap.train.study.page import page
from normswap.train.study.results import Comparison, Options
from normswap.train.study.runs import SETTINGS, Run, RunFiles, RunResult

TARGETS = "the labels"  # no input has such a name
_WARM_UP = 20  # one step in so many


@dataclass(frozen=True)
class Workload:
    """``start``: the untrained model of each seed, .pt2. ``train``, ``validation``, ``test``: .npy
    by input name, and the labels as ``TARGETS``. ``scores``: the number of the output that
    classifies. ``runs``: the folder for results."""

    start: Mapping[int, Path]
    train: Mapping[str, Path]
    validation: Mapping[str, Path]
    test: Mapping[str, Path]
    scores: int
    steps: int
    batch: int
    runs: Path

    def options(self, run: Run) -> TrainOptions:
        """AdamW as DeiT has it; plain is without gradient clipping, which would hide crashes."""
        setting = SETTINGS[run.setting]
        return TrainOptions(
            self.steps,
            self.batch,
            run.rate,
            self.steps // _WARM_UP if setting.warm_up else 0,
            clip=setting.clip,
            seed=run.seed,
            precision=setting.precision,
        )


def write_workload(folder: Path, contest: Contest, steps: int, batch: int, runs: Path) -> Workload:
    """Puts it all into ``folder``; a model that several seeds start from only once.

    Raises NormswapError if it cannot be written.
    """
    start: dict[int, Path] = {}
    written: dict[int, Path] = {}
    for seed, model in enumerate(contest.starts):
        if id(model) not in written:
            written[id(model)] = folder / f"start-{seed}.pt2"
            save(model, written[id(model)])
        start[seed] = written[id(model)]
    return Workload(
        start,
        _write_arrays(folder, "train", contest.train),
        _write_arrays(folder, "validation", contest.validation),
        _write_arrays(folder, "test", contest.test),
        contest.scores,
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


_OPTIONS, _RESULTS, _PAGE, _LOG = "options.json", "results.json", "README.md", "log.jsonl"
_RUNS, _WORK = "runs", "work"


class CompareFolder:
    """Raises NormswapError, in all its methods, for what cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = RunFiles(path / _RUNS)

    def begin(self, options: Options, resume: bool) -> None:
        """Makes it, or goes on with one that was begun with the same options."""
        self._make(self.path / _RUNS)
        file = self.path / _OPTIONS
        if file.exists():
            self._check(_read(file), dataclasses.asdict(options), resume)
        else:
            self._write(_OPTIONS, json.dumps(dataclasses.asdict(options), indent=2) + "\n")
        check_writable(self.path / _RESULTS)

    @contextlib.contextmanager
    def workload(self, contest: Contest, options: Options) -> Iterator[Workload]:
        """What the runs read, as files while the block lasts."""
        folder = self.path / _WORK
        self._make(folder)
        try:
            yield write_workload(folder, contest, options.steps, options.batch, self.runs.folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def log(self, result: RunResult) -> None:
        """A line for a finished run, without its losses and vitals."""
        document = result.to_json()
        del document["losses"], document["vitals"]
        path = self.path / _LOG
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(document, allow_nan=False) + "\n")
        except OSError as error:
            raise NormswapError(f"{path}: cannot be written ({_reason(error)})") from error

    def finish(self, comparison: Comparison, figures: Sequence[str], command: str | None) -> None:
        document = json.dumps(comparison.to_json(), indent=1, allow_nan=False)
        self._write(_RESULTS, document + "\n")
        self._write(_PAGE, page(comparison, figures, command))

    def _check(self, theirs: dict[str, object], ours: dict[str, object], resume: bool) -> None:
        for name, value in ours.items():
            if theirs.get(name) != value:
                if name == "digest":
                    what = "of other weights or other samples"
                else:
                    what = f"with {name.replace('_', ' ')} {theirs.get(name)}, not {value}"
                raise NormswapError(f"{self.path}: holds a comparison {what}; name another folder")
        if not resume:
            raise NormswapError(
                f"{self.path}: holds this comparison already; go on with --resume, or name another "
                "folder"
            )

    def _write(self, name: str, text: str) -> None:
        with atomic_path(self.path / name) as file:
            file.write_text(text, encoding="utf-8")

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NormswapError(
                f"{folder}: this folder cannot be made ({_reason(error)}); name another output"
            ) from error


def _read(file: Path) -> dict[str, object]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return dict(document)
    except (OSError, ValueError, TypeError) as error:
        raise NormswapError(
            f"{file}: cannot be read ({first_line(error)}); name another folder"
        ) from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
