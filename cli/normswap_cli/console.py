"""Where a command prints: results on standard output, all else on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from normswap.report.progress import Progress

_WIDEST = 1000
_PIPED_WIDTH = 200  # tables take what they need of it; nobody reads a cut-off name


@contextlib.contextmanager
def working(lines: bool = False) -> Iterator[Progress]:
    """The library at work: what it prints goes to standard error. Yields a progress callback.

    ``lines``: tell each step also where there is no terminal for a progress bar.
    """
    with contextlib.redirect_stdout(sys.stderr):
        from normswap.report.progress import Progress

        with Progress(lines) as progress:
            yield progress


def show(*renderables: RenderableType) -> None:
    """Prints to standard output, in whatever encoding it has; ``Line`` makes names visible.

    No line is wider than COLUMNS where that is set. Else a table takes the width that it needs.
    """
    from rich.console import Console
    from rich.measure import Measurement

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False, markup=False, emoji=False)
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):  # some set it to 0, where it is not known
        for renderable in renderables:
            console.print(renderable)
        return
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    for renderable in renderables:
        # Rather lines that the terminal wraps than columns without room for their contents.
        unlimited = console.options.update(max_width=_WIDEST)
        needed = Measurement.get(console, unlimited, renderable).minimum
        console.print(renderable, width=max(console.width, needed), crop=False)


def show_json(document: Mapping[str, Any]) -> None:
    """Prints one JSON document to standard output, in ASCII and standard JSON."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def complain(line: str) -> None:
    """Prints one line to standard error; nothing where that cannot be written."""
    from normswap.errors import visible

    with contextlib.suppress(OSError):
        click.echo(f"normswap: {visible(line)}", err=True)


@contextlib.contextmanager
def joined_group() -> Iterator[bool]:
    """Joins the processes that torchrun started this one with, if it did. Yields whether this is
    the first of them, the one that writes files and reports."""
    if "RANK" not in os.environ:  # a process by itself need not import torch
        yield True
        return
    from normswap.distributed import process_group, rank

    with process_group():
        yield rank() == 0
