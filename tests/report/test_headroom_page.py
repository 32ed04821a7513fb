"""The page on headroom: bars are as long as what is left, and what goes over is in it by name."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import normswap as ns
from normswap.norms.site import Site
from normswap.precision.constants import LostConstant
from normswap.precision.headroom import Headroom, NormHeadroom, Place
from normswap.report.html.document import page_text
from normswap.report.html.headroom import headroom_page, write_headroom
from tests.report.html_samples import HOSTILE, provenance

SVG = "{http://www.w3.org/2000/svg}"


def _place(name: str, largest: float, kind: str = "stream", op: str = "Add") -> Place:
    return Place(name, kind, op, "", largest, min(largest, 1e-3))


def _norm(name: str, reads: float, inside: float | None, behind: float | None) -> NormHeadroom:
    site = Site(
        name=name, kind="layer_norm", role="pre_mlp", tower="image", axes=(2,),
        normalized_shape=(8,), epsilon=1e-12, weight=np.ones(8), bias=None,
        input=f"{name}.x", output=f"{name}.y", spelling="decomposed",
    )  # fmt: skip
    return NormHeadroom(
        site,
        _place(f"{name}.x", reads),
        None if inside is None else _place(f"{name}.square", inside, "norm", "Pow"),
        None if behind is None else _place(f"{name}.hidden", behind, "hidden", "Gelu"),
    )


def found(model: str = "vit.onnx") -> Headroom:
    """A stream that grows through three blocks until it goes over."""
    norms = [
        _norm("blocks.0.norm", 16.0, 200.0, 8.0),
        _norm("blocks.1.norm", 2048.0, 4e6, None),
        _norm("blocks.2.norm", 262_016.0, None, 1e5),
    ]
    places = [p for n in norms for p in (n.stream, n.inside, n.behind) if p is not None]
    places.append(_place("gone", 1e-9, "value", "Mul"))
    epsilon = LostConstant("eps", "Add", "", 1e-12, True, 3, {"float16": 0.0})
    weights = LostConstant("bias", "Linear", "", 1e-9, False, 1, {"float16": 0.0})
    large = LostConstant("factor", "Mul", "", 1e5, True, 1, {"float16": math.inf})
    return Headroom(model, 24, norms, places, [epsilon, weights, large])


def _drawn(text: str) -> ET.Element:
    (drawing,) = re.findall(r'<div class="plot">(.*?)</div>', text)
    return ET.fromstring(drawing)


def _y(drawing: ET.Element, words: str) -> float:
    """Of the tick with these words."""
    ticks = [t for t in drawing.iter(f"{SVG}text") if t.attrib["class"] == "tick left"]
    (tick,) = (t for t in ticks if t.text == words)
    return float(tick.attrib["y"]) - 4


def test_bars_are_as_long_as_what_is_left() -> None:
    drawing = _drawn(page_text(headroom_page(found())))
    bars = [b for b in drawing.iter(f"{SVG}rect") if b.attrib["class"].startswith("bar")]
    zero, five = _y(drawing, "0"), _y(drawing, "5")
    one = (zero - five) / 5  # pixels of a binary place
    lengths = [float(bar.attrib["height"]) / one for bar in bars]
    assert lengths == pytest.approx([math.log2(65504 / 16), math.log2(65504 / 2048), 2], abs=0.05)
    tops = [float(bar.attrib["y"]) for bar in bars]
    assert tops[0] < tops[1] < zero
    assert tops[2] == pytest.approx(zero)  # the bar that goes down
    assert [bar.attrib["class"] for bar in bars] == [
        "bar candidate", "bar candidate", "bar candidate over",
    ]  # fmt: skip
    signs = [path.attrib["class"] for path in drawing.iter(f"{SVG}path")]
    assert signs == [
        "sign triangle series-1", "sign triangle over series-1",
        "sign diamond series-2", "sign diamond over series-2",
    ]  # fmt: skip
    assert "blocks.1.norm.square (Pow), 4e+06" in "".join(drawing.itertext())


def test_what_goes_over_and_what_underflows_is_named() -> None:
    text = page_text(headroom_page(found()))
    assert "float16 does not hold all of it." in text
    assert "blocks.1.norm.square (Pow) is the first beyond 6.55e+04" in text
    assert "4e+06, and 2 more" in text
    assert "1e-12: is 0 in float16, 3 operators, first &#39;eps&#39; (Add)" in text
    assert "weights of at most 1e-09: is 0 in float16" in text
    assert "1e+05: is beyond what there is in float16" in text
    assert "float16 makes 0 of all of 1 value, the largest 1e-09 at gone (Mul)" in text
    assert "bfloat16 has 106 or more left at every norm" in text
    assert text.count('<tr class="failed">') == 3  # two norms, and what is behind one
    assert 'id="findings"' in text
    assert re.findall('<section id="([a-z]+)"', text) == [
        "figures", "findings", "depth", "values", "provenance",
    ]  # fmt: skip


def test_a_model_that_half_precision_holds() -> None:
    all_of_it = found()
    held = replace(all_of_it, norms=all_of_it.norms[:1], places=all_of_it.places[:3], constants=[])
    text = page_text(headroom_page(held))
    assert "float16 holds all of it." in text
    assert "Nothing goes over, no constant is lost and nothing underflows." in text
    assert "failed" not in re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
    bare = page_text(headroom_page(replace(held, norms=[], places=[])))
    assert "No norm was found" in bare


@pytest.mark.parametrize("number", [0.0, 5e-324, 1e300, math.inf])
def test_any_number_can_be_drawn(number: float) -> None:
    one = replace(found(), norms=[_norm("norm", number, number, number)])
    text = page_text(headroom_page(replace(one, places=[one.norms[0].stream])))
    for drawing in re.findall(r'<div class="plot">(.*?)</div>', text):
        assert "nan" not in ET.tostring(ET.fromstring(drawing), "unicode")


def test_names_stay_text(tmp_path: Path) -> None:
    hostile = found(HOSTILE)
    norms = [_norm(f"{HOSTILE}.0.norm", 1e5, 1e6, 1e7)]
    constants = [replace(hostile.constants[0], name=HOSTILE, operator=HOSTILE)]
    path = tmp_path / "page.html"
    places = [norms[0].stream]
    write_headroom(
        replace(hostile, norms=norms, constants=constants, places=places), path, provenance()
    )
    text = path.read_text("utf-8")
    assert "<script" not in text
    assert not re.search("[\x00\u202e]", text)
    with pytest.raises(ns.NormswapError, match=r"page\.html"):
        write_headroom(hostile, path / "page.html")
