"""Progress on standard error, for the progress callbacks of passes and ``validate``."""

from __future__ import annotations

import threading
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from normswap.errors import visible

SILENCE = 20.0
"""The most seconds without a line where standard error is no terminal."""


class Progress:
    """A context manager to be called as ``progress(done, total, what)``.

    Shows a bar on a terminal while it runs. Elsewhere it prints a line where it has been silent for
    ``SILENCE``, or, with ``lines``, for each step.
    """

    def __init__(self, lines: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            redirect_stdout=False,  # the commands have redirected it already
        )
        self._lines = lines
        self._task = self._bars.add_task("", total=None, visible=False)
        self._step = "loading"
        self._ended = threading.Event()

    def __call__(self, done: int, total: int, what: str) -> None:
        what = visible(what)
        self._step = f"[{done}/{total}] {what}"
        if self._lines and not self._console.is_terminal:
            self._console.print(self._step, soft_wrap=True)
        self._bars.update(
            self._task, completed=done, total=total, description=what, visible=done < total
        )

    def __enter__(self) -> Self:
        self._bars.start()
        if not self._console.is_terminal:
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._bars.stop()

    def _tell(self) -> None:
        # Of a thread, because a step may be long, and loading has no steps.
        began = time.monotonic()
        while not self._ended.wait(SILENCE):
            seconds = time.monotonic() - began
            self._console.print(f"{self._step} ({seconds:.0f} s)", soft_wrap=True)
