"""Progress on standard error, for the progress callbacks of passes and ``validate``."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from normswap.errors import visible


class Progress:
    """A context manager to be called as ``progress(done, total, what)``.

    Shows a bar on a terminal while it runs. Elsewhere it is silent, or, with ``lines``, prints a
    line for each step.
    """

    def __init__(self, lines: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            redirect_stdout=False,  # the commands have redirected it already
        )
        self._lines = lines and not self._console.is_terminal
        self._task = self._bars.add_task("", total=None, visible=False)

    def __call__(self, done: int, total: int, what: str) -> None:
        what = visible(what)
        if self._lines:
            self._console.print(f"[{done}/{total}] {what}")
        self._bars.update(
            self._task, completed=done, total=total, description=what, visible=done < total
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
