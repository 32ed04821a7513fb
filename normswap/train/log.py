"""What a training run says while it goes: a log of JSON lines, its pace."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError
from normswap.model import Progress


class JsonLines:
    """Writes a line for each step to ``path``; with ``keep`` behind those that are there.

    A run that was killed may have logged steps that its checkpoint does not have: when one of them
    is logged again, its old line and those behind it go. A missing folder is made. Raises
    NormswapError for a file that cannot be written, or that holds something else.
    """

    def __init__(self, path: Path, keep: bool = False) -> None:
        self._path, self._keep = path, keep
        self._first = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a"):
                pass
        except OSError as error:
            raise self._failed(error) from error

    def __call__(self, entry: Mapping[str, Any]) -> None:
        try:
            if self._first:
                self._cut(entry["step"] if self._keep else 0)
                self._first = False
            with open(self._path, "a") as file:
                file.write(json.dumps(dict(entry)) + "\n")
        except OSError as error:
            raise self._failed(error) from error

    def _cut(self, step: int) -> None:
        """Drops the lines from ``step`` on, and one that a kill left unfinished."""
        end = 0
        if not step:
            os.truncate(self._path, 0)
            return
        with open(self._path, "rb") as file:
            for line in file:
                try:
                    if json.loads(line)["step"] >= step or not line.endswith(b"\n"):
                        break
                except (ValueError, KeyError, TypeError) as error:
                    if not line.endswith(b"\n"):
                        break
                    raise NormswapError(
                        f"{self._path}: is not the log of a training run; name another file"
                    ) from error
                end += len(line)
        os.truncate(self._path, end)

    def _failed(self, error: OSError) -> NormswapError:
        reason = (error.strerror or str(error)).lower()
        return NormswapError(f"{self._path}: cannot be written ({reason}); name another log")


class Pace:
    """Tells ``progress`` of each step with the rate so far and the time that remains."""

    def __init__(self, progress: Progress | None, first: int, steps: int, batch: int) -> None:
        self._progress, self._first, self._steps, self._batch = progress, first, steps, batch
        self._began = time.monotonic()

    def samples_per_second(self, done: int) -> float:
        return self._batch * (done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def tell(self, done: int, loss: float | None) -> None:
        """``done``: steps of the whole run, resumed ones too."""
        if self._progress is None:
            return
        what = "training"
        if loss is not None:
            what += f", loss {loss:.4g}"
        if done > self._first:
            rate = self.samples_per_second(done)
            left = (self._steps - done) * self._batch / rate
            what += f", {rate:.0f} samples/s, {_clock(left)} left"
        self._progress(done, self._steps, what)


def throttled(progress: Progress, seconds: float) -> Progress:
    """Passes on a call in so many seconds, and the ends of tasks: for output without a terminal."""
    last = -seconds

    def call(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            progress(done, total, what)

    return call


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
