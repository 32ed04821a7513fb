"""Mermaid diagrams: legal, complete and the same at every call."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normswap import BatchNorm, fold, swap
from normswap.norms import locate
from normswap.report.mermaid import diagram, model_diagram
from normswap.report.mermaid_text import label
from normswap.report.outline import Fork, Outline, Repeat, Side, Step, Tower
from tests.zoo.exports import model_as
from tests.zoo.models import BUILDERS

NODE = re.compile(r'(n\d+)(\[|\(\[|\(\()"([^"]*)"(\]|\]\)|\)\))')
FRAME = re.compile(r'subgraph (frame\d+)\["([^"]*)"\]')
EDGE = re.compile(r"(\w+) --> (\w+)")
CLASS = re.compile(r"class ([\w,]+) (\w+)")
HOSTILE = [
    'a"b', "x]y[z", "#35;", "end", "<script>alert(1)</script>", "`md`", "**bold**", "1. list",
    "%%{init: {}}%%", "- dash", "+", "fa:fa-car", "style:x#1;", "classDef a:#f;", "ünï→你", "a\nb",
    "\ud800", "$$x^2$$", "&amp;", "\\n", "-->", "|a|", "a;b", "__init__", "ß\ufb02°°", "\x00", "",
]  # fmt: skip


class Drawn:
    """A diagram taken apart; fails where a line is none that belongs into one."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        assert lines[0].startswith("%%{init:")
        assert lines[1] == "flowchart TB"
        assert text.endswith("\n")
        assert text.isascii()
        self.nodes: dict[str, str] = {}
        self.frames: dict[str, str] = {}
        self.edges: list[tuple[str, str]] = []
        self.styles: dict[str, str] = {}
        depth = 0
        for line in lines[2:]:
            if match := NODE.fullmatch(line):
                self.nodes[match[1]] = match[3]
            elif match := FRAME.fullmatch(line):
                self.frames[match[1]] = match[2]
                depth += 1
            elif line == "end":
                depth -= 1
            elif match := EDGE.fullmatch(line):
                self.edges.append((match[1], match[2]))
            elif match := CLASS.fullmatch(line):
                self.styles.update(dict.fromkeys(match[1].split(","), match[2]))
            else:
                assert line == "direction TB" or line.startswith("classDef "), line
        assert depth == 0
        things = self.nodes.keys() | self.frames.keys()
        assert {end for edge in self.edges for end in edge} <= things
        assert self.styles.keys() == things
        assert set(self.nodes) == {f"n{i}" for i in range(len(self.nodes))}

    def labels(self, style: str) -> list[list[str]]:
        """The lines of the labels of one style, by node."""
        found = [self.nodes[n] for n, s in self.styles.items() if s == style and n in self.nodes]
        return [[read(line) for line in text.split("<br/>")] for text in found]


def read(text: str) -> str:
    """What a label says on the page."""
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", text)).replace("\u200b", "")


@pytest.mark.parametrize("form", ["fx", "torchscript-14"])
@pytest.mark.parametrize("name", BUILDERS)
def test_diagrams_of_models(name: str, form: str) -> None:
    model = model_as(name, form)
    text = model_diagram(model)
    drawn = Drawn(text)
    assert text == model_diagram(model)
    titles = [read(title) for title in drawn.frames.values()]
    towers = {site.tower for site in locate(model.graph).sites}
    assert {f"{tower} tower" for tower in towers} <= set(titles)
    assert sum(title.endswith("(2 times)") for title in titles) == len(towers)
    outputs = zip(model.output_names, model.graph.outputs, strict=True)
    computed = {name for name, value in outputs if not value.is_constant}  # not the logit scale
    assert computed <= {read(text) for text in drawn.nodes.values()}


def test_what_a_norm_shows() -> None:
    drawn = Drawn(model_diagram(model_as("timm_vit", "fx")))
    assert drawn.labels("layer_norm") == [
        ["blocks.*.norm1", "layer_norm, pre_attention", "C=192, eps 1e-06"],
        ["blocks.*.norm2", "layer_norm, pre_mlp", "C=192, eps 1e-06"],
        ["norm", "layer_norm, final", "C=192, eps 1e-06"],
    ]
    assert "blocks.0 ... blocks.1 (2 times)" in map(read, drawn.frames.values())


def test_residual_connections_go_around() -> None:
    drawn = Drawn(model_diagram(model_as("timm_vit", "fx")))
    sums = [node for node, text in drawn.nodes.items() if read(text) == "+"]
    assert len(sums) == 2
    for node in sums:
        skip, branch = (source for source, end in drawn.edges if end == node)
        (norm,) = [end for source, end in drawn.edges if source == skip and end != node]
        assert drawn.styles[norm] == "layer_norm"
        assert branch != skip


def test_after_a_swap_and_after_the_fold() -> None:
    model = model_as("timm_vit", "fx")
    images = np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)
    swapped = swap(model, BatchNorm(ffn_batchnorm=True), data=images).model
    drawn = Drawn(model_diagram(swapped))
    names = [lines[0] for lines in drawn.labels("batch_norm")]
    assert names == ["blocks.*.norm1", "blocks.*.norm2", "blocks.*.mlp.fc1_bn", "norm"]
    folded = Drawn(model_diagram(fold(swapped).model))
    assert set(folded.styles.values()) == {"plain", "frame", "entry"}
    assert "blocks.0 ... blocks.1 (2 times)" in map(read, folded.frames.values())


def test_outputs_of_many_blocks_leave_their_frame_together() -> None:
    blocks = tuple(
        (Fork("add", ((), (Step("mlp", f"b.{i}.f"), Step("scale", f"b.{i}.g"))), f"v{i}"),)
        for i in range(4)
    )
    sides = tuple(Side(f"v{i}", (), (f"state{i}",)) for i in range(4))
    items = (Step("input", "x", value="x"), Repeat(blocks))
    drawn = Drawn(diagram(Outline((Tower("", items, (), sides),))))
    (frame,) = [name for name, title in drawn.frames.items() if title.endswith("(4 times)")]
    (output,) = [end for start, end in drawn.edges if start == frame]
    assert drawn.nodes[output] == "state0<br/>state1<br/>state2<br/>..."


def test_input_shapes_are_shown() -> None:
    model = model_as("timm_vit", "fx")
    assert "x<br/>7x3x32x32" in model_diagram(model, {"x": (7, 3, 32, 32)})


def test_hostile_names() -> None:
    items = [Step("linear", name, value=f"v{i}") for i, name in enumerate(HOSTILE)]
    drawn = Drawn(diagram(Outline((Tower('"]', tuple(items), tuple(HOSTILE[:2])),))))
    told = [[read(line) for line in text.split("<br/>")] for text in drawn.nodes.values()]
    plain = [lines[0] for name, lines in zip(HOSTILE, told, strict=False) if name.isprintable()]
    assert plain[:-1] == [name for name in HOSTILE if name.isprintable()][:-1]
    assert told[HOSTILE.index("a\nb")][0] == "a b"
    assert told[HOSTILE.index("\ud800")][0] == "\ufffd"
    assert told[-1] == HOSTILE[:2]
    assert [read(title) for title in drawn.frames.values()] == ['"]']


@given(st.text())
def test_labels_of_any_text(text: str) -> None:
    shown = label(text)
    assert re.fullmatch(r'"([A-Za-z0-9 ,.=()/_?-]|#\d+;)*"', shown)
    if text.isprintable() and len(text) < 50 and text.strip():
        assert read(shown[1:-1]) == " ".join(text.split())
