"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_ONE_LINE, _WORD = 44, 24  # letters


@dataclass(frozen=True)
class Table:
    """``numeric`` and ``names``: columns of figures and of paths, by their heads. ``failed``: rows
    that stand out, by index."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[str] = ()
    names: Sequence[str] = ()
    failed: Sequence[int] = ()

    def style(self, column: int, words: str) -> str:
        """The classes of a cell: 'number', 'name', 'long' (may be broken anywhere)."""
        if self.head[column] in self.numeric:
            return "number"
        long = len(words) > _ONE_LINE or any(len(word) > _WORD for word in words.split())
        kinds = {"name": self.head[column] in self.names, "long": long}
        return " ".join(kind for kind, holds in kinds.items() if holds)


@dataclass(frozen=True)
class Picture:
    """A drawing, which says what it shows in words, and the data behind it.

    ``legend``: what signs mean, as (style class, words).
    """

    title: str
    drawing: Markup
    data: Table
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Note:
    """A line that stands out. ``tone``: 'good', 'plain', 'warn' or 'bad'; ``word`` names it."""

    tone: str
    word: str
    text: str
    where: str = ""


@dataclass(frozen=True)
class Section:
    """``wide``: its pictures take the whole width, one below the other."""

    id: str
    title: str
    text: Sequence[str] = ()
    notes: Sequence[Note] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    command: str | None = None
    wide: bool = False
