"""What sections of the page are made of: tables, pictures and notes, and figures as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from normswap.errors import visible
from normswap.parity.report import ApproximateOutput, ModelSummary, SiteComparison

TO = "\N{RIGHTWARDS ARROW}"

_ONE_LINE, _WORD = 44, 24  # letters
_KINDS = {
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
    "batch_norm": "BatchNorm",
    "instance_norm": "InstanceNorm",
    "group_norm": "GroupNorm",
}
_ROLES = {
    "embedding": "on the embedding",
    "pre_attention": "before attention",
    "pre_mlp": "before the MLP",
    "post_attention": "after attention",
    "post_mlp": "after the MLP",
    "final": "final",
    "query_key": "on query or key",
    "downsample": "downsampling",
}
_TOWERS = {"image": "Image tower", "text": "Text tower", "both": "Both towers", "": "Model"}
_NUMBER = re.compile(r"(?<=[./])\d{1,6}(?=[./])")


@dataclass(frozen=True)
class Table:
    """``numeric`` and ``names``: columns of figures and of paths, by their heads. ``failed``: the
    indices of highlighted rows."""

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


def table_of(
    caption: str,
    rows: Sequence[Mapping[str, str]],
    numeric: Sequence[str] = (),
    names: Sequence[str] = (),
    failed: Sequence[bool] = (),
) -> Table:
    """A table of rows by their heads, which all have; ``failed``: whether each is highlighted."""
    indices = [index for index, bad in enumerate(failed) if bad]
    cells = [list(row.values()) for row in rows]
    return Table(caption, list(rows[0]), cells, numeric, names, indices)


@dataclass(frozen=True)
class Picture:
    """A drawing with a description inside, and the data behind it.

    ``legend``: what the signs mean, as (style class, words).
    """

    title: str
    drawing: Markup
    data: Table
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Note:
    """A highlighted line. ``tone``: 'good', 'plain', 'warn' or 'bad'; ``word`` says it in words."""

    tone: str
    word: str
    text: str
    where: str = ""


@dataclass(frozen=True)
class TileAnswer:
    """What a model answers; ``right``: whether that is the label, None where none is known."""

    model: str
    value: str
    right: bool | None


@dataclass(frozen=True)
class Tile:
    """A sample of the data. ``source``: its image as a data URI; ``words``: all of it in words."""

    name: str
    label: str
    answers: Sequence[TileAnswer]
    source: str
    words: str


@dataclass(frozen=True)
class Tiles:
    """Samples with something in common. ``tone``: 'good', 'plain', 'warn' or 'bad'."""

    head: str
    tone: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Section:
    """``wide``: its pictures take the whole width, one below the other. ``samples``: a grid."""

    id: str
    title: str
    text: Sequence[str] = ()
    notes: Sequence[Note] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    command: str | None = None
    wide: bool = False
    samples: Sequence[Tiles] = ()


@dataclass(frozen=True)
class Verdict:
    """``tone``: 'good', 'plain' (another function, measured) or 'bad'."""

    tone: str
    sign: str
    headline: str
    sentences: list[str]


@dataclass(frozen=True)
class KeyFigure:
    """A number of the top, ``name`` says of what."""

    value: str
    name: str
    detail: str = ""


# -- figures and terms as text -------------------------------------------------------------------


def number(value: float | None, spec: str = ".2e") -> str:
    """'-' for None; an error may be infinite."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return format(value, spec)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def decibels(sqnr: float | None, max_abs_error: float | None) -> str:
    """An SQNR; 'equal' where there is no error."""
    return "equal" if max_abs_error == 0 else number(sqnr, ".1f")


def closeness(compared: ApproximateOutput | SiteComparison) -> dict[str, str]:
    """The columns of how close two outputs are."""
    return {
        "SQNR dB": decibels(compared.sqnr_db, compared.max_abs_error),
        "cosine": number(compared.cosine_mean, ".4f"),
        "worst": number(compared.cosine_worst, ".4f"),
        "max error": number(compared.max_abs_error),
    }


def times(value: float | None) -> str:
    """A multiple: 0.42, 31,200 or 1.20e+07."""
    if value is None or not math.isfinite(value) or 0 < value < 0.01 or value >= 1e6:
        return number(value)
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def change(before: float | None, after: float | None) -> str:
    """From one share to another; '-' where the first is not known."""
    return "-" if before is None else f"{percent(before)} {TO} {percent(after)}"


def file_size(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f}\N{NO-BREAK SPACE}MB"


def counted(count: int, noun: str) -> str:
    """'1 norm', '2 norms'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kind_name(kind: str | None) -> str:
    return "none" if kind is None else _KINDS.get(kind, kind)


def role_name(role: str) -> str:
    return _ROLES.get(role, role.replace("_", " "))


def tower_name(tower: str) -> str:
    return _TOWERS.get(tower, tower)


def kind_style(kind: str) -> str:
    """A class of the style file; kinds that it does not know share one."""
    return kind if kind in _KINDS else "other_norm"


def kinds_present(model: ModelSummary) -> str:
    """'24 LayerNorm, 1 BatchNorm', or 'no norms'."""
    counts = Counter(kind_name(norm.kind) for norm in model.norms)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no norms"


def listed(parts: Iterable[str]) -> str:
    """'a, b and c'."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters, the middle left out; escapes count as what is shown."""
    text = visible(text)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"


def gathered(names: Iterable[str]) -> list[str]:
    """``blocks.{0-11}.norm1`` for ``blocks.0.norm1`` to ``blocks.11.norm1``.

    Only names that differ in nothing but the first number of their path are put together.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(tuple(_NUMBER.split(name, maxsplit=1)), []).append(name)
    result = []
    for ends, members in groups.items():
        if len(members) == 1 or len(ends) == 1:
            result += members
        else:
            numbers = [int(name[len(ends[0]) : len(name) - len(ends[1])]) for name in members]
            result.append(f"{ends[0]}{{{_ranges(sorted(numbers))}}}{ends[1]}")
    return result


def _ranges(numbers: Sequence[int]) -> str:
    """'0-3,5' for 0, 1, 2, 3, 5."""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]]
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in zip(starts, ends, strict=True))
