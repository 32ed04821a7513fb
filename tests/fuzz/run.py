"""Runs mutants in forked children with limits, and collects what went wrong, by cause."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from normswap import NormswapError
from tests.fuzz.seeds import Seed
from tests.fuzz.trial import load, silence, trial, warm

FINE = ("refused", "rewritten", "unchanged")
_TOGETHER = 200  # mutants that a child runs one after the other, unless one ends it
_CPU_SECONDS = 20
_WALL_SECONDS = 90  # the machine may be busy
_MEMORY = 2 << 30
_LIMITS = {signal.SIGVTALRM: "CPU time", signal.SIGPROF: "CPU time", signal.SIGALRM: "a hang"}


@dataclass
class Findings:
    """How mutants went: a count of each outcome, and the number of the first mutant of it."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)

    @property
    def wrong(self) -> dict[str, int]:
        """The causes of what went wrong, with their counts."""
        return {cause: n for cause, n in self.counts.items() if cause not in FINE}

    def add(self, number: int, outcome: str, seconds: float) -> None:
        self.counts[outcome] += 1
        self.first.setdefault(outcome, number)
        self.slowest = max(self.slowest, (seconds, number))


def fuzz(
    seeds: Sequence[Seed],
    numbers: Sequence[int],
    seed: int,
    save: Path | None = None,
    seconds: float = float("inf"),
) -> Findings:
    """Runs the mutants with these ``numbers``, each of which follows from it and from ``seed``.

    ``save``: a folder for the first mutant of each cause. ``seconds``: after which it ends early.
    """
    warm()
    with tempfile.TemporaryDirectory() as folder:
        _first_of_each_kind(seeds, Path(folder))
    gc.collect()
    gc.freeze()  # else each child's collector copies the pages of what it has from here
    end = time.monotonic() + seconds
    findings = Findings()
    pending = list(numbers)
    with tempfile.TemporaryDirectory() as folder:
        while pending and time.monotonic() < end:
            done = _child(seeds, pending[:_TOGETHER], seed, Path(folder), findings, save)
            pending = pending[done:]
    return findings


def _first_of_each_kind(seeds: Sequence[Seed], folder: Path) -> None:
    """Goes through what is imported and kept once, so that children have it from here."""
    for kind, seed in {seed.kind: seed for seed in reversed(seeds)}.items():
        path = _put(seed, seed.files, folder / kind)
        with contextlib.suppress(NormswapError):
            load(kind, path)


def written(seeds: Sequence[Seed], number: int, seed: int, folder: Path) -> tuple[Seed, Path]:
    """Writes a mutant into ``folder``; what to load of it."""
    random = np.random.default_rng([seed, number])
    chosen = seeds[int(random.integers(len(seeds)))]
    return chosen, _put(chosen, chosen.mutant(random), folder)


def _put(seed: Seed, files: Mapping[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    first = next(iter(seed.files))
    return folder if seed.kind == "folder" else folder / first.partition("/")[0]


def _child(
    seeds: Sequence[Seed],
    numbers: Sequence[int],
    seed: int,
    folder: Path,
    findings: Findings,
    save: Path | None,
) -> int:
    """Runs mutants in one forked child; returns how many of them it got through or died of."""
    reading, writing = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run_all(seeds, numbers, seed, folder, writing)
    os.close(writing)
    done = 0
    with os.fdopen(reading) as lines:
        for line in lines:
            now = time.monotonic()
            _keep(seeds, numbers[done], seed, findings, line.rstrip("\n"), now - start, save)
            start, done = now, done + 1
    _, status = os.waitpid(pid, 0)
    if done < len(numbers):
        if os.WIFSIGNALED(status):
            number = signal.Signals(os.WTERMSIG(status))
            outcome = _LIMITS.get(number, f"signal {number.name}")
        else:
            outcome = f"exit with status {os.WEXITSTATUS(status)}"
        _keep(seeds, numbers[done], seed, findings, outcome, time.monotonic() - start, save)
        done += 1
    return done


def _keep(
    seeds: Sequence[Seed],
    number: int,
    seed: int,
    findings: Findings,
    outcome: str,
    seconds: float,
    save: Path | None,
) -> None:
    new = outcome not in findings.first
    findings.add(number, outcome, seconds)
    if save is not None and new and outcome not in FINE:
        name = "".join(c if c.isalnum() else "-" for c in outcome)[:80]
        place = save / f"{name}-{seed}-{number}"
        place.mkdir(parents=True, exist_ok=True)
        written(seeds, number, seed, place)
        (place / "cause.txt").write_text(f"{outcome}\n")


def _run_all(
    seeds: Sequence[Seed], numbers: Sequence[int], seed: int, folder: Path, writing: int
) -> None:
    """The child: never returns."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    silence()
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        room = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
        signal.alarm(_WALL_SECONDS)
        place = folder / "mutant"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        chosen, path = written(seeds, number, seed, place)
        outcome = trial(chosen.kind, path)
        os.write(writing, (" ".join(outcome.splitlines()) + "\n").encode())
    os._exit(0)
