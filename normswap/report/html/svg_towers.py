"""The norms of a tower before and after, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from normswap.report.html.formats import kind_name, role_name, shortened
from normswap.report.html.norm_rows import Block, NormRow
from normswap.report.html.svg import picture, share, tag
from normswap.report.outline.names import pattern

_HEAD, _NAME, _BOX, _GAP, _PAD = 26, 16, 38, 10, 8  # pixels along y
_LEFT, _RIGHT, _COLUMN = 0.02, 0.54, 0.44  # of the width
_LONGEST = 42  # letters of a name that fit a phone
_STATES = {
    "kept": "kept",
    "swapped": "in its place",
    "gone": "no norm is left here",
    "new": "new",
    "unmatched": "see below, skipped",
}


def tower_drawing(title: str, description: str, blocks: Sequence[Block]) -> Markup:
    """A column for each of the two models, a line for each norm, data flowing down."""
    drawn: list[Markup] = []
    y = float(_HEAD)
    for block in blocks:
        repeated = len(block.copies) > 1
        top = y
        y += _PAD if repeated else 0
        for index in range(len(block.copies[0])):
            drawn.append(_line([copy[index] for copy in block.copies], y))
            y += _NAME + _BOX + _GAP
        if repeated:
            drawn.insert(0, _frame(top, y - top - _GAP + _PAD, len(block.copies)))
            y += _PAD
    centres = {_LEFT + _COLUMN / 2: "reference", _RIGHT + _COLUMN / 2: "candidate"}
    heads = [_text(x, 14, words, "head") for x, words in centres.items()]
    streams = [
        tag("line", x1=share(x), x2=share(x), y1=_HEAD - 6, y2=y, class_="stream") for x in centres
    ]
    return picture(title, description, y, "towers", *streams, *heads, *drawn)


def _frame(y: float, height: float, count: int) -> Markup:
    frame = tag("rect", x=0, y=y, width="100%", height=height, rx=8, class_="repeat")
    words = f"\N{MULTIPLICATION SIGN} {count}"
    label = tag("text", words, x=-8, y=y + height / 2 + 5, class_="count")
    return frame + label


def _line(copies: Sequence[NormRow], y: float) -> Markup:
    row = copies[0]
    norms = [copy.norm for copy in copies]
    names = [norm.name for norm in norms if norm is not None]
    name = shortened(pattern(names), _LONGEST)
    hover = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    shown = tag("text", tag("title", hover), name, x=share(_LEFT), y=y + _NAME - 5, class_="name")
    top = y + _NAME
    if row.before is None:
        left = Markup("")
    else:
        words = (kind_name(row.before.kind), _role(copies))
        left = _box(_LEFT, top, _style(row.before.kind), *words)
    if row.after_kind is not None:
        words = (kind_name(row.after_kind), _after(copies))
        right = _box(_RIGHT, top, _style(row.after_kind), *words)
    else:
        words = ("gone" if row.state == "gone" else "not matched", _STATES[row.state])
        right = _box(_RIGHT, top, row.state, *words)
    middle = top + _BOX / 2
    arrow = _text(0.5, middle + 5, "\N{RIGHTWARDS ARROW}" if row.before else "+", "arrow")
    return shown + left + arrow + right


def _role(copies: Sequence[NormRow]) -> str:
    roles = dict.fromkeys(copy.norm.role for copy in copies if copy.norm is not None)
    return role_name(next(iter(roles))) if len(roles) == 1 else "several roles"


def _after(copies: Sequence[NormRow]) -> str:
    return f"new, {_role(copies)}" if copies[0].before is None else _STATES[copies[0].state]


def _box(x: float, y: float, style: str, head: str, below: str) -> Markup:
    box = tag(
        "rect", x=share(x), y=y, width=share(_COLUMN), height=_BOX, rx=5, class_=f"box {style}"
    )
    centre = x + _COLUMN / 2
    first = _text(centre, y + 16, shortened(head, 15), f"kind on-{style}")
    return box + first + _text(centre, y + 31, shortened(below, 20), f"role on-{style}")


def _style(kind: str) -> str:
    """A class of the style file; kinds that it does not know share one."""
    known = ("layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm")
    return kind if kind in known else "other_norm"


def _text(x: float, y: float, words: str, style: str) -> Markup:
    return tag("text", words, x=share(x), y=y, text_anchor="middle", class_=style)
