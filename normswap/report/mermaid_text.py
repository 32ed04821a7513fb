"""Text inside a Mermaid diagram, whatever it holds."""

from __future__ import annotations

import re
import unicodedata

_LONGEST = 120  # characters of a line
# Everything else goes by its number. Markdown and icon names are recognised in labels too, so
# letters that mean something there count as unsafe, and so do all that are not ASCII.
_UNSAFE = re.compile(r"[^A-Za-z0-9 ,.=()/_-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[ -]|^\d+(?=\.)")

# With what follows, these are an icon, a formula, a line break or Mermaid's own code for a letter,
# even by their numbers: a space without width behind them keeps them what they are.
_BOUND = frozenset(":$\\\N{LATIN SMALL LIGATURE FL}\N{PILCROW SIGN}")


def label(*lines: str) -> str:
    """A quoted label of the non-empty ``lines``; legal whatever characters they hold."""
    shown = [_escaped(line) for line in lines if line.strip()]
    return '"' + ("<br/>".join(shown) or "?") + '"'


def _escaped(line: str) -> str:
    line = " ".join(line.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 4]} ..."
    return _UNSAFE.sub(lambda match: "".join(map(_entity, match[0])), line)


def _entity(character: str) -> str:
    # Control characters and halves of surrogate pairs have no place in a page.
    code = 0xFFFD if unicodedata.category(character).startswith("C") else ord(character)
    return f"#{code};#8203;" if character in _BOUND else f"#{code};"
