"""README.md and the pages of docs/: their blocks of code, their headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- (.*) -->\n$")
_EXITS = re.compile(r"# exits with (\d)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment in the line above it, if there is one."""

    language: str
    text: str
    note: str


@dataclass(frozen=True)
class Command:
    """One line of a block of sh: its words, without the comment, and the status it ends with."""

    line: str
    words: list[str]
    status: int


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in order."""
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        note = _NOTE.search(text, 0, match.start())
        yield Block(match[1], match[2], note[1] if note else "")


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of sh; a backslash goes on in the next line."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            status = _EXITS.search(line)
            yield Command(shlex.join(words), words, int(status[1]) if status else 0)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """The targets of the links and pictures of a page that are no addresses."""
    return [link for link in _LINK.findall(prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What stands behind '#' in links to the headings of a page, as mkdocs and GitHub name them."""
    words = [re.sub(r"[^\w\s-]", "", heading).strip() for heading in _HEADING.findall(prose(page))]
    return {re.sub(r"\s+", "-", heading.lower()) for heading in words}


def matches(wanted: str, printed: str) -> bool:
    """Whether ``printed`` is what a page shows, but for white space at the ends of lines.

    A line '...' stands for any lines, '...' within one for any characters of it.
    """
    pattern = ""
    for line in wanted.splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            parts = [re.escape(part.rstrip()) for part in line.split("...")]
            pattern += ".*".join(parts) + r"[ ]*\n"
    return re.fullmatch(pattern, printed) is not None
