"""A line of text for the terminal, with names from files in it."""

from __future__ import annotations

from rich.text import Text

from normswap.errors import visible


class Line(Text):
    """Text on one line. Control characters in it are shown, not obeyed, and nothing is markup."""

    def __init__(self, text: object = "", style: str = "") -> None:
        super().__init__(visible(text), style)
