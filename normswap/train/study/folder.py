"""The folder of a comparison: what it was begun with, its runs, and what it ends with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from normswap.errors import NormswapError, first_line
from normswap.io.atomic import atomic_path, check_writable
from normswap.train.study.contest import Contest
from normswap.train.study.page import page
from normswap.train.study.results import Comparison, Options
from normswap.train.study.runs import RunFiles, RunResult
from normswap.train.study.workload import Workload, write_workload

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
            yield write_workload(
                folder,
                contest.starts,
                contest.train,
                contest.test,
                contest.scores,
                options.steps,
                options.batch,
                self.runs.folder,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def log(self, result: RunResult) -> None:
        """A line for a finished run, without its losses."""
        document = result.to_json()
        del document["losses"]
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
