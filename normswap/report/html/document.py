"""A page as one HTML file, whatever it is about: the top, the sections, and the file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from normswap.errors import escaped
from normswap.io.atomic import atomic_path
from normswap.parity.report import Provenance
from normswap.report.html.parts import KeyFigure, Section, Table, Verdict, counted

_FOLDER = Path(__file__).parent
# Names come from model files. Characters that control a terminal or the direction of text have no
# place in a page, and halves of surrogate pairs cannot be written at all: their escapes are shown.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


@dataclass(frozen=True)
class Page:
    """``models``: the names of what the page is about; ``measure``: below the verdict, what was
    held against what."""

    models: Sequence[str]
    verdict: Verdict
    measure: str
    figures: Sequence[KeyFigure]
    sections: Sequence[Section]


def page_text(page: Page) -> str:
    """The page as one HTML file: text, to be written as UTF-8.

    It loads nothing and runs nothing; its Content-Security-Policy allows nothing but its own style,
    and where it has pictures of samples, images inside of it.
    """
    style = (_FOLDER / "style.css").read_text(encoding="utf-8").strip()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        page=page,
        pictured=any(section.samples for section in page.sections),
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )
    return _UNPRINTABLE.sub(lambda found: escaped(found[0]), text)


def write_page(page: Page, path: Path) -> None:
    """Writes the page to ``path``, whole or not at all.

    Raises NormswapError where it cannot be written.
    """
    text = page_text(page)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def provenance_section(made: Provenance | None, tables: Sequence[Table]) -> Section:
    """What made the report; ``tables``: of what it was made."""
    title = "Where this comes from"
    if made is None:
        text = ["It is not recorded what made this report."]
        return Section("provenance", title, text, tables=tables)
    text = [f"Made on {made.machine} with {counted(made.threads, 'thread')}."]
    python = "It was made from Python, not by a command."
    text.append("This command makes it again:" if made.command else python)
    rows = [[name, version] for name, version in made.versions.items()]
    versions = [Table("Versions", ["library", "version"], rows, names=["version"])] * bool(rows)
    return Section("provenance", title, text, tables=[*tables, *versions], command=made.command)
