"""The outline of a model as a Mermaid flowchart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from normswap.model import Model
from normswap.norms.site import Site
from normswap.report.input_shapes import sized, sizes_text
from normswap.report.outline import outline
from normswap.report.outline.items import (
    Fork,
    Item,
    Outline,
    Repeat,
    Side,
    Step,
    common_path,
    pattern,
    steps,
    walk,
)

_TITLES = {"image": "image tower", "text": "text tower", "both": "both towers", "": "model"}
_WORDS = {
    "patch_embedding": "patch embedding",
    "token_embedding": "token embedding",
    "mlp": "MLP",
    "scale": "scale per channel",
    "normalise": "normalise",
    "operator": "",
    "activation": "",
    "pool": "pooling",
    "tokens": "class token",
    "head": "linear head",
    "product": "product of matrices",
}
_SIGNS = {"add": "+", "multiply": "\N{MULTIPLICATION SIGN}"}
# White on each of them is readable, and each of them stands out on white and on black.
_COLOURS = {
    "layer_norm": "#0b5cad",
    "rms_norm": "#7a3fb8",
    "batch_norm": "#1a7f37",
    "instance_norm": "#0f766e",
    "group_norm": "#9a5200",
}
_PLAIN = "fill:none,stroke:#808080"  # text and lines follow the page, light or dark
_ENTRY = "fill:#808080,stroke:#808080"
_LAYOUT = (
    '%%{init: {"flowchart": {"wrappingWidth": 400, "rankSpacing": 30, '
    '"subGraphTitleMargin": {"top": 4, "bottom": 12}}}}%%'
)
_MOST_OUTPUTS = 3  # names in one node
_LONGEST = 120  # characters of a line
# Characters that are written by their numbers: all that are not ASCII, and those with a meaning in
# Markdown or in the names of icons, which Mermaid recognises in labels too.
_UNSAFE = re.compile(r"[^A-Za-z0-9 ,.=()/_-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[ -]|^\d+(?=\.)")

# With the letters behind them these are an icon, a formula, a line break or Mermaid's own code for
# a letter, even by their numbers: a space without width behind them prevents that.
_BOUND = frozenset(":$\\\N{LATIN SMALL LIGATURE FL}\N{PILCROW SIGN}")


def model_diagram(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> str:
    """A Mermaid flowchart of the model's towers, with each norm in its place.

    ``input_shapes``: sizes to show for inputs, by name (see ``inspection``). Raises NormswapError
    for shapes that the model does not take.
    """
    shapes = {name: array.shape for name, array in sized(model, input_shapes or {}).items()}
    return diagram(outline(model), shapes)


def diagram(drawn: Outline, shapes: Mapping[str, Sequence[int]] | None = None) -> str:
    """The outline as Mermaid, ending in a line break. ``shapes``: of inputs, by name."""
    drawing = _Drawing(shapes or {})
    for tower in drawn.towers:
        drawing.new_tower()
        drawing.open(_TITLES.get(tower.name, tower.name))
        ends = drawing.chain([tower.items], [])
        drawing.outputs(tower.outputs, ends)
        drawing.sides(tower.sides)
        drawing.close()
    return drawing.text()


class _Drawing:
    """The lines of a diagram while they are written.

    A list of the same item, one of each repetition of a block, is drawn as one node, whose name is
    the pattern of theirs. The ends of a chain are the nodes that lead on from it.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = shapes
        self._towers: list[list[str]] = []
        self._edges: list[str] = []
        self._classes: dict[str, list[str]] = {}
        self._nodes = 0
        self._frames = 0
        self._depth = 1
        self._at: dict[str, str] = {}  # the node that shows a graph value

    def text(self) -> str:
        styles = {"plain": _PLAIN, "frame": _PLAIN, "entry": _ENTRY}
        styles |= {kind: f"fill:{fill},stroke:{fill},color:#fff" for kind, fill in _COLOURS.items()}
        used = [name for name in styles if name in self._classes]
        nodes = [line for tower in reversed(self._towers) for line in tower]  # drawn right to left
        lines = [f"    classDef {name} {styles[name]}" for name in used]
        lines += [f"    class {','.join(self._classes[name])} {name}" for name in used]
        return "\n".join([_LAYOUT, "flowchart TB", *nodes, *self._edges, *lines, ""])

    def new_tower(self) -> None:
        """Starts a tower, to the right of those before it."""
        self._towers.append([])

    # -- items -----------------------------------------------------------------------------------

    def chain(self, same: Sequence[Sequence[Item]], ins: list[str]) -> list[str]:
        """Draws items behind the nodes ``ins``; the nodes at their end."""
        for items in zip(*same, strict=True):
            ins = self._item(items, ins)
        return ins

    def sides(self, sides: Sequence[Side]) -> None:
        """Draws the way to further outputs; those that leave from one node share one."""
        direct: dict[str, list[str]] = {}
        for side in sides:
            start = self._at.get(side.after, "")
            if start and not side.items:
                direct.setdefault(start, []).extend(side.outputs)
            else:
                ends = self.chain([side.items], [start] if start else [])
                self.outputs(side.outputs, ends)
        for start, names in direct.items():
            self.outputs(names, [start])

    def outputs(self, names: Sequence[str], ends: list[str]) -> None:
        """Draws graph outputs."""
        if names:
            more = ["..."] if len(names) > _MOST_OUTPUTS else []
            lines = [*names[:_MOST_OUTPUTS], *more]
            self._node(lines, ends, "([{}])")

    def _item(self, same: Sequence[Item], ins: list[str]) -> list[str]:
        first = same[0]
        if isinstance(first, Repeat):
            return self._repeat([item for item in same if isinstance(item, Repeat)], ins)
        if isinstance(first, Fork):
            ends = self._fork([item for item in same if isinstance(item, Fork)], ins)
        else:
            ends = self._step([item for item in same if isinstance(item, Step)], ins)
        for end in ends:
            values = (item.value for item in same if not isinstance(item, Repeat))
            self._at.update(dict.fromkeys(filter(None, values), end))
        return ends

    def _repeat(self, same: Sequence[Repeat], ins: list[str]) -> list[str]:
        """A frame around one block, entered and left at its border."""
        blocks = [block for repeat in same for block in repeat.blocks]
        frame = self.open(_block_title(blocks))
        forks = isinstance(blocks[0][0], Fork)
        self.chain(blocks, [self._node([], [], '((" "))', "entry")] if forks else [])
        self.close()
        self._edges += [f"    {source} --> {frame}" for source in dict.fromkeys(ins)]
        for block in blocks:
            inner = (item.value for item in walk(block) if not isinstance(item, Repeat))
            self._at.update(dict.fromkeys(inner, frame))
        return [frame]

    def _fork(self, same: Sequence[Fork], ins: list[str]) -> list[str]:
        branches = zip(*(fork.branches for fork in same), strict=True)
        ends = [end for branch in branches for end in self.chain(branch, ins)]
        join = same[0].join
        sign = _SIGNS.get(join)
        return [self._node([sign or _WORDS.get(join, join)], ends, "(({}))" if sign else "[{}]")]

    def _step(self, same: Sequence[Step], ins: list[str]) -> list[str]:
        step = same[0]
        if step.kind == "link":
            return [self._at[step.value]] if step.value in self._at else []
        if any(part.site is not None for part in steps(step.parts)):
            if step.kind == "attention":
                return self._attention(same, ins)
            return self.chain([step.parts for step in same], ins)
        return [self._plain_step(same, ins)]

    def _plain_step(self, same: Sequence[Step], ins: list[str]) -> str:
        step = same[0]
        name = pattern([s.name for s in same])
        if step.site is not None:
            sites = [s.site for s in same if s.site is not None]
            return self._node([name, *_norm_lines(sites)], ins, "[{}]", step.site.kind)
        if step.kind == "input":
            shape = self._shapes.get(step.name)
            sizes = step.detail if shape is None else sizes_text(shape)
            return self._node([step.name, sizes], ins, "([{}])")
        words = [_WORDS.get(step.kind, step.kind), step.detail]
        return self._node([name, ", ".join(filter(None, words))], ins, "[{}]")

    def _attention(self, same: Sequence[Step], ins: list[str]) -> list[str]:
        """With norms of the queries and keys, between the projections and the attention."""
        rows = [list(row) for row in zip(*(step.parts for step in same), strict=True)]
        core = next(i for i, row in enumerate(rows) if _kind(row) == "attention")
        for row in rows[:core]:
            if _kind(row) == "linear":
                ins = self._item(row, ins)
        normed = [self._item(row, ins) for row in rows[:core] if _kind(row) == "norm"]
        ins = self._item(rows[core], [*ins, *(end for ends in normed for end in ends)])
        for row in rows[core + 1 :]:
            ins = self._item(row, ins)
        return ins

    # -- lines -----------------------------------------------------------------------------------

    def open(self, title: str) -> str:
        """Starts a frame around the nodes to come."""
        frame = f"frame{self._frames}"
        self._frames += 1
        self._line(f"subgraph {frame}[{label(title)}]")
        self._classes.setdefault("frame", []).append(frame)
        self._depth += 1
        self._line("direction TB")
        return frame

    def close(self) -> None:
        """Ends the innermost frame."""
        self._depth -= 1
        self._line("end")

    def _node(
        self, lines: Sequence[str], ins: Sequence[str], shape: str, style: str = "plain"
    ) -> str:
        node = f"n{self._nodes}"
        self._nodes += 1
        self._line(node + shape.format(label(*lines)))
        self._classes.setdefault(style, []).append(node)
        self._edges += [f"    {source} --> {node}" for source in dict.fromkeys(ins)]
        return node

    def _line(self, text: str) -> None:
        self._towers[-1].append("    " * self._depth + text)


def _block_title(blocks: Sequence[Sequence[Item]]) -> str:
    """``blocks.0 ... blocks.11 (12 times)``, without the path to where their names differ."""
    names = [common_path(step.name for step in steps(block)) for block in blocks]
    first, last = names[0].split("."), names[-1].split(".")
    shared = len(common_path([names[0], names[-1]]).split("."))
    ends = [".".join(parts[max(shared - 1, 0) :]) for parts in (first, last)]
    name = " ... ".join(ends) if names[0] != names[-1] else names[0]
    return f"{name} ({len(blocks)} times)".strip()


def _kind(row: Sequence[Item]) -> str:
    return row[0].kind if isinstance(row[0], Step) else ""


def _norm_lines(sites: Sequence[Site]) -> tuple[str, str]:
    site = sites[0]
    channels = sizes_text(site.normalized_shape)
    epsilons = sorted(site.epsilon for site in sites)
    ends = dict.fromkeys(f"{epsilon:.3g}" for epsilon in (epsilons[0], epsilons[-1]))
    return f"{site.kind}, {site.role}", f"C={channels}, eps {' to '.join(ends)}"


# -- text ----------------------------------------------------------------------------------------


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
