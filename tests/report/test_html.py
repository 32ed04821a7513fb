"""The page without a browser: what it holds, that names stay text, that pictures are true."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from normswap.parity.report import (
    ApproximateOutput,
    Bisection,
    Histogram,
    ModelSummary,
    Norm,
    ValidationReport,
)
from normswap.report import html
from normswap.report.html.norms import blocks, norm_rows
from normswap.report.html.page import html_report
from normswap.report.html.parts import gathered, times
from normswap.report.html.svg import Scale, linear, logarithmic, tag
from normswap.report.html.verdict import verdict
from normswap.timing.bench_report import BenchReport
from tests.report import html_samples as samples

CLIP, BENCH = samples.clip_approximate()
HOSTILE, HOSTILE_BENCH = samples.hostile()
SAMPLES: dict[str, tuple[ValidationReport, BenchReport | None]] = {
    "passed": (samples.exact_passed(), None),
    "failed": (samples.exact_failed(), None),
    "clip": (CLIP, BENCH),
    "answered": (samples.answered(), None),
    "not pictured": (samples.answered(labelled=False, pictured=False), None),
    "hostile": (HOSTILE, HOSTILE_BENCH),
    "bare exact": (samples.bare("exact"), None),
    "bare exact failed": (samples.bare("exact", False), None),
    "bare approximate": (samples.bare("approximate"), None),
    "bare approximate failed": (samples.bare("approximate", False), None),
}
SECTIONS = {
    "exact": "figures findings norms depth errors cost skipped details provenance",
    "approximate": "figures findings norms depth errors agreement cost skipped provenance",
}
ELEMENTS = set(
    """
    html head meta title style body header main footer section nav h1 h2 h3 p b span a ul li dl dt
    dd div figure figcaption details summary table caption thead tbody tr th td pre code
    svg desc text line rect path img
    """.split()  # noqa: SIM905
)
SVG = "{http://www.w3.org/2000/svg}"
STYLE = (Path(html.__file__).parent / "style.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def ids(self, tag: str) -> list[str | None]:
        return [attributes["id"] for name, attributes in self.elements if name == tag]


def pictures(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r'<div class="plot">(.*?)</div>', page)]


def numbers(element: ET.Element, *names: str) -> list[float]:
    return [float(element.attrib[name].removesuffix("%")) for name in names]


@pytest.mark.parametrize("name", SAMPLES)
def test_sections_and_pictures(name: str) -> None:
    """Every section is there in its order, says something, and every picture has words and data."""
    report, bench = SAMPLES[name]
    text = html_report(report, bench)
    page = Page(text)
    expected = SECTIONS[report.contract].split()
    if report.answers is not None:
        expected.insert(2, "answers")
    assert page.ids("section") == expected
    assert page.ids("header") == ["verdict"]
    for section in re.findall(r'<section id="(?!figures).*?</section>', text, re.DOTALL):
        assert re.search(r"<p>[^<]{15,}|<table>|<li ", section), section[:80]
    drawn = pictures(text)
    assert len(drawn) == text.count("<figure>") == text.count("<details>")
    for svg in drawn:
        assert svg.attrib["role"] == "img"
        assert svg.attrib["aria-labelledby"] == svg.find(f"{SVG}title").attrib["id"]
        assert all(svg.find(f"{SVG}{part}").text for part in ("title", "desc"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_stay_text() -> None:
    """Markup in names is shown and does nothing, inside pictures too."""
    text = html_report(HOSTILE, HOSTILE_BENCH)
    page = Page(text)
    assert {name for name, _ in page.elements} <= ELEMENTS
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert sum("<script>alert(1)</script>\"'&]]>" in part for part in page.texts) > 50
    shown = [part for svg in pictures(text) for part in svg.itertext()]
    assert sum("<script>alert(1)</script>\"'&]]>" in part for part in shown) > 15
    text.encode()
    assert not re.search("[\x00\u202e]", text)
    lost = html_report(replace(HOSTILE, reference=ModelSummary("half \ud800", "fx", None)))
    assert rb"half \ud800" in lost.encode()


def test_attributes_are_escaped() -> None:
    element = ET.fromstring(tag("text", "a<b", class_=samples.HOSTILE[:-6], x=None))
    assert element.attrib == {"class": samples.HOSTILE[:-6]}
    assert element.text == "a<b"


def test_nothing_is_loaded() -> None:
    """No address, no script, and a policy that allows this very style and nothing else."""
    text = html_report(CLIP, BENCH)
    assert not re.search(r"url\(|@import|src=|<script|<link|javascript:", text)
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert " style=" not in text  # the policy would block it


def test_samples_are_shown_with_both_answers() -> None:
    text = html_report(samples.answered())
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "; img-src data:; base-uri 'none'" in text
    heads = ["Only the reference is right", "Only the candidate is right", "Both are wrong"]
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", text) == [*heads, "Both are right"]
    assert text.count('<dd class="wrong">') == 4
    assert 'alt="sample 0, label 3: reference 3, candidate 8"' in text
    table = html_report(samples.answered(labelled=False, pictured=False))
    assert "<img" not in table
    assert "img-src" not in table
    assert '<td class="">different classes</td>' in table


@pytest.mark.parametrize(
    ("report", "bench", "expected"),
    [
        (
            samples.exact_passed(),
            samples.bench_of(samples.exact_passed()),
            "It is the same model. It differs from the original by no more than rounding does: the "
            "largest error is 0.45 of what is allowed (output logits, probe: batch 1). Its norms: "
            "25 RMSNorm in place of LayerNorm. It is faster: 0.95 of the time (0.94 to 0.96), in "
            "onnxruntime.",
        ),
        (
            samples.exact_failed(),
            None,
            "It is not the same model. At output logits it is 31,000 times as far off as rounding "
            "explains (probe: large mean). The models part first at blocks.5.norm1, after "
            "blocks.4.norm2 and before blocks.5.norm2. Its norms: 25 RMSNorm in place of "
            "LayerNorm.",
        ),
        (
            CLIP,
            None,
            "This is how close it is to the original. Accuracy: 93.1\xa0% \u2192 92.8\xa0% (512 "
            "samples). At output logits_per_image the error is 10.2\xa0% of the signal (SQNR 19.8 "
            "dB); the cosine is 0.9951 on average and 0.9655 at worst. Of the 10 nearest texts of "
            "an image 94.3\xa0% stay, of the 10 nearest images of a text 95.1\xa0%. Its norms: "
            "50 LayerNorm gone and 25 norms of the same kind.",
        ),
        (
            replace(samples.exact_failed(), contract="approximate", outputs=[], bisection=None),
            None,
            "The comparison failed. largest error 3.10e-02, allowed 1.00e-06 (at logits), and 1 "
            "more finding of that weight. No figure of how close it is could be computed. The "
            "first norm that is further off than allowed is blocks.5.norm1. Its norms: 25 RMSNorm "
            "in place of LayerNorm.",
        ),
        (samples.bare("exact"), None, "Nothing was compared. The models share no output."),
        (samples.bare("exact", False), None, "It is not shown to be the same model."),
        (
            replace(
                samples.bare("approximate"),
                outputs=[ApproximateOutput("y", "y", "float32", 4, None, 1.0, 1.0, 0.0)],
                reference=ModelSummary("a", "onnx", "a", sha256="0f"),
                candidate=ModelSummary("b", "onnx", "b", sha256="0f"),
            ),
            None,
            "No difference was found. Every output is equal on these inputs. Both files are the "
            "same, byte for byte: nothing was changed.",
        ),
    ],
    ids=["passed", "failed", "measured", "broken", "nothing", "no reason", "same file"],
)
def test_verdict(report: ValidationReport, bench: BenchReport | None, expected: str) -> None:
    found = verdict(report, bench)
    assert " ".join([found.headline, *found.sentences]) == expected


def test_time_is_compared_within_a_runtime() -> None:
    """A candidate in another runtime says nothing, nor does a ratio to another model."""
    report = samples.exact_passed()
    bench = samples.bench_of(report)
    ours, theirs, *_ = bench.results
    elsewhere = replace(bench, results=[ours, replace(theirs, runtime="torch")])
    other = replace(bench, results=[replace(ours, path="other.onnx"), theirs])
    undecided = replace(theirs, ratio=replace(theirs.ratio, high=1.01))
    for found in (elsewhere, other):
        assert "of the time" not in " ".join(verdict(report, found).sentences)
    told = verdict(report, replace(bench, results=[ours, undecided])).sentences[-1]
    assert told.startswith("No difference in time was shown: 0.95 of the time (0.94 to 1.01)")
    second = replace(undecided, runtime="torch", ratio_in_runtime=theirs.ratio)
    both = replace(bench, results=[ours, replace(ours, runtime="torch"), second])
    assert verdict(report, both).sentences[-1].startswith("It is faster: 0.95 of the time")


def test_blocks_are_told_once() -> None:
    rows = norm_rows(CLIP)
    assert {tower: len(found) for tower, found in rows.items()} == {"image": 50, "text": 25}
    image, ordered = blocks(rows["image"])
    assert [(len(copies), len(copies[0])) for copies in image] == [(1, 1), (24, 2), (1, 1)]
    assert ordered
    assert {row.state for row in rows["image"]} == {"gone"}
    assert {row.state for row in rows["text"]} == {"kept"}


def test_what_became_of_each_norm() -> None:
    """By name, by role where names are lost, and what is new stays where it runs."""
    ours = samples.vit_norms(2, "layer_norm")
    theirs = [replace(norm, name=f"node_{i}", kind="rms_norm") for i, norm in enumerate(ours)]
    ffn = Norm("blocks.0.mlp.norm", "batch_norm", "other", "image", 3072)
    theirs = [theirs[0], ours[1], ffn, theirs[3], theirs[4]]
    report = replace(
        samples.bare("exact"),
        reference=samples.model("a", ours, 1),
        candidate=samples.model("b", theirs, 1),
        sites=[samples._exact_site(norm, None, 0.5) for norm in ours[2:3]],
        unmatched=[(ours[4].name, "why")],
    )
    found = norm_rows(report)["image"]
    names = [(r.before and r.before.name, r.after and r.after.name, r.state) for r in found]
    assert names == [
        ("blocks.0.norm1", "node_0", "swapped"),
        ("blocks.0.norm2", "blocks.0.norm2", "kept"),
        ("blocks.1.norm1", None, "gone"),
        (None, "blocks.0.mlp.norm", "new"),
        ("blocks.1.norm2", "node_3", "swapped"),
        ("norm", None, "unmatched"),
        (None, "node_4", "new"),
    ]


def test_norms_without_a_match_are_gone_where_no_norm_is_left() -> None:
    report = replace(CLIP, unmatched=[("visual.ln_pre", "nothing behind it has a match")])
    states = {
        tower: [row.state for row in rows if row.norm.name in ("visual.ln_pre", "ln_final")]
        for tower, rows in norm_rows(report).items()
    }
    assert states == {"image": ["gone"], "text": ["kept"]}
    kept = replace(report, candidate=report.reference, sites=report.sites[1:])
    lost = replace(kept, candidate=replace(kept.candidate, norms=kept.candidate.norms[1:]))
    assert norm_rows(lost)["image"][0].state == "unmatched"


def test_a_known_name_is_not_given_away() -> None:
    """A norm that is gone does not take the next one, which has a name of its own."""
    ours = samples.vit_norms(2, "layer_norm")
    report = replace(
        samples.bare("exact"),
        reference=samples.model("a", ours, 1),
        candidate=samples.model("b", ours[2:], 1),
    )
    states = [row.state for row in norm_rows(report)["image"]]
    assert states == ["gone", "gone", "kept", "kept", "kept"]


def test_many_irregular_norms_are_drawn_as_few() -> None:
    kinds = ("layer_norm", "group_norm", "rms_norm")
    pattern = [kinds[(index * index // 7) % 3] for index in range(300)]
    norms = [Norm(f"s.{i}.norm", kind, "other", "image", 8) for i, kind in enumerate(pattern)]
    model = samples.model("a", norms, 1)
    report = replace(samples.bare("exact"), reference=model, candidate=model)
    found, ordered = blocks(norm_rows(report)["image"])
    drawn = {copies[0][0].after_kind: len(copies) for copies in found}
    assert not ordered
    assert drawn == Counter(pattern)


def test_depth_is_drawn_where_it_is() -> None:
    """A sign for each norm at its height; the limit, and where the models part."""
    report = samples.exact_failed()
    drawing = next(svg for svg in pictures(html_report(report)) if svg.attrib["class"] == "depth")
    signs = drawing.findall(f"{SVG}svg")
    spots = [numbers(sign, "x", "y") for sign in signs]
    assert [x for x, _ in spots] == pytest.approx(
        [100 * (i + 0.5) / 25 for i in range(25)], abs=0.01
    )
    limit = next(line for line in drawing if line.attrib.get("class") == "limit")
    for site, (_, y) in zip(report.sites, spots, strict=True):
        assert (y < numbers(limit, "y1")[0]) == (site.excess > 1)
    heights = [y for _, y in spots[10:]]
    steps = [a - b for a, b in itertools.pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * len(steps), abs=0.02)  # times 1.6: a straight line
    assert steps[0] > 1
    parting = next(line for line in drawing if line.attrib.get("class") == "parting")
    assert numbers(parting, "x1") == pytest.approx([42.0])  # blocks.5.norm1, the 11th of 25
    titles = [sign.find(f"{SVG}path/{SVG}title").text for sign in signs]
    assert titles[10] == "blocks.5.norm1: 40.00"


@pytest.mark.parametrize(
    ("bisection", "x"),
    [
        (Bisection("conv", after_norm="blocks.0.norm2", before_norm="blocks.1.norm1"), 8.0),
        (Bisection("patch_embed", before_norm="blocks.0.norm1"), 0.0),
        (Bisection("head", after_norm="norm"), 100.0),
        (Bisection("elsewhere"), None),
        (Bisection(None, note="both agree everywhere"), None),
    ],
    ids=["between", "before all", "after all", "unknown", "none"],
)
def test_parting_beside_norms(bisection: Bisection, x: float | None) -> None:
    text = html_report(replace(samples.exact_failed(), bisection=bisection))
    found = re.search(r'<line x1="([\d.]+)%"[^>]*class="parting"', text)
    assert (float(found[1]) if found else None) == x
    assert bisection.note in text


def test_histograms_show_shares() -> None:
    """Heights are as the counts, and what has no error stands apart."""
    report = samples.exact_failed()
    drawing = next(s for s in pictures(html_report(report)) if s.attrib["class"] == "histogram")
    columns = {
        style: [rect for rect in drawing.findall(f"{SVG}rect") if style in rect.attrib["class"]]
        for style in ("candidate", "original")
    }
    shares = {}
    for style in columns:
        histogram = getattr(report.errors[0], style)
        counts = [count for count in (histogram.zeros, *histogram.counts) if count]
        shares[style] = [count / sum(counts) for count in counts]
    tallest = max(share for held in shares.values() for share in held)
    for style, rects in columns.items():
        heights = [numbers(rect, "height")[0] for rect in rects]
        drawn = [max(1.0, 130 * share / tallest) for share in shares[style]]
        assert heights == pytest.approx(drawn, abs=0.02)
    zero, *others = (numbers(rect, "x", "width") for rect in columns["candidate"])
    assert sum(zero) < min(x for x, _ in others)


def test_bars_are_as_long_as_the_shares() -> None:
    text = html_report(CLIP, BENCH)
    bars = [s for s in pictures(text) if s.attrib["class"] == "bars"]
    shares = bars[0].findall(f"{SVG}rect")
    assert [numbers(bar, "width")[0] for bar in shares] == pytest.approx([93.1, 92.8, 97.27, 93.16])
    times_drawn = [numbers(rect, "width")[0] for rect in bars[2].findall(f"{SVG}rect")]
    assert times_drawn[1] / times_drawn[0] == pytest.approx(771.9 / 812.4, abs=1e-4)
    intervals = next(s for s in pictures(text) if s.attrib["class"] == "intervals")
    ratios = [numbers(dot, "x")[0] for dot in intervals.findall(f"{SVG}svg")]
    assert ratios[0] < 50 < ratios[1]
    assert "no difference shown" in "".join(intervals.itertext())


def test_findings_and_reasons() -> None:
    """Fatal ones first; skipped sites by their reasons, blocks in few words."""
    text = html_report(samples.exact_failed())
    notes = re.findall(r'<li class="(\w+)"><b>(.*?)</b>', text)
    assert notes[:3] == [
        ("bad", "failed: error bound"),
        ("bad", "failed: site"),
        ("warn", "note: constant"),
    ]
    assert "its output is not computed in the candidate" in text
    clip = html_report(CLIP, BENCH)
    assert (
        "transformer.resblocks.{0-11}.norm1, transformer.resblocks.{0-11}.norm2, ln_final" in clip
    )
    assert "openvino is not installed" in clip


def test_colours_have_contrast() -> None:
    """WCAG AA: 4.5 for text on all it stands on, 3 for what is drawn, light and dark."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    )
    assert light.keys() == dark.keys()
    norms = [name for name in light if name.endswith("-norm") and name != "on-norm"]
    text = [(tone, f"{tone}-panel") for tone in ("good", "plain", "bad", "warn")]
    text += [("quiet", f"{tone}-panel") for tone in ("good", "plain", "bad", "warn")]
    text += [("text", f"{tone}-panel") for tone in ("good", "plain", "bad", "warn")]
    text += [
        (name, page) for name in ("text", "quiet", "link", "bad") for page in ("page", "panel")
    ]
    text += [("on-norm", name) for name in norms]
    drawn = [(name, "page") for name in (*norms, "reference", "candidate", "second", "warn")]
    assert len(norms) == 6
    for palette in (light, dark):
        for pairs, least in ((text, 4.5), (drawn, 3.0)):
            for one, other in pairs:
                assert contrast(palette[one], palette[other]) >= least, (one, other)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear_parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear_parts, strict=True))


@pytest.mark.parametrize(
    ("scale", "low", "high", "ticks"),
    [
        (linear([0.3, 0.87]), 0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (linear([-12.0, 43.0]), -20, 50, ["-20", "0", "20", "40"]),
        (linear([]), 0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (logarithmic([0.0, 3e-9, 0.5]), 1e-9, 1, ["1e-8", "1e-6", "1e-4", "0.01", "1"]),
        (logarithmic([1.0]), 1, 10, ["1", "10"]),
    ],
    ids=["linear", "negative", "empty", "logarithmic", "one value"],
)
def test_axes(scale: Scale, low: float, high: float, ticks: list[str]) -> None:
    assert (scale.low, scale.high) == pytest.approx((low, high))
    assert [words for _, words in scale.ticks()] == ticks
    assert (scale.at(float("-inf")), scale.at(float("inf"))) == (0, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (0.0, "0.00"), (0.449, "0.45"), (31_000.0, "31,000"), (2e-5, "2.00e-05")]
    + [(3.1e7, "3.10e+07"), (float("inf"), "infinite")],
)
def test_multiples(value: float | None, words: str) -> None:
    assert times(value) == words


def test_names_are_gathered() -> None:
    blocks_seen = [f"v.blocks.{i}.norm1" for i in (0, 1, 2, 5, 7, 8)]
    assert gathered([*blocks_seen, "v.norm", "x.3.y"]) == [
        "v.blocks.{0-2,5,7-8}.norm1",
        "v.norm",
        "x.3.y",
    ]


@pytest.mark.parametrize("sample", ["failed", "clip"])
def test_any_value_may_be_missing(sample: str) -> None:
    """Each optional field as None by itself, wherever it stands, makes a page of sound pictures."""
    report, bench = samples.clip_approximate(2) if sample == "clip" else SAMPLES[sample]
    seen = 0
    for thinned in without_one(report):
        pictures(html_report(thinned, bench))
        seen += 1
    for thinned in without_one(bench) if bench else []:
        pictures(html_report(report, thinned))
        seen += 1
    assert seen > 15


@pytest.mark.parametrize("value", [0.0, -1.0, 5e-324, 1e300, math.inf, math.nan])
@pytest.mark.parametrize("sample", ["failed", "clip"])
def test_any_number_can_be_drawn(sample: str, value: float) -> None:
    """No coordinate is NaN or infinite, whatever the figures are."""
    report, bench = samples.clip_approximate(2) if sample == "clip" else SAMPLES[sample]
    for svg in pictures(
        html_report(with_floats(report, value), bench and with_floats(bench, value))
    ):
        for element in svg.iter():
            for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
                assert math.isfinite(numbers(element, name)[0]) if name in element.attrib else True


def without_one(value: Any) -> Iterator[Any]:
    """The value with one of its optional fields None, each in turn; the first items of lists."""
    if isinstance(value, list) and value:
        for thinned in without_one(value[0]):
            yield [thinned, *value[1:]]
    elif is_dataclass(value):
        for field in fields(value):
            held = getattr(value, field.name)
            if "None" in str(field.type) and held is not None:
                yield replace(value, **{field.name: None})
            for thinned in without_one(held):
                yield replace(value, **{field.name: thinned})


def with_floats(value: Any, number: float) -> Any:
    """The value with ``number`` for every float in it."""
    if isinstance(value, float):
        return number
    if isinstance(value, list | tuple):
        return type(value)(with_floats(item, number) for item in value)
    if is_dataclass(value) and not isinstance(value, Histogram):
        changed = {f.name: with_floats(getattr(value, f.name), number) for f in fields(value)}
        return replace(value, **changed)
    return value


def test_what_each_norm_was_swapped_for_has_a_table() -> None:
    page = html_report(CLIP)
    caption = "What affine put in the place of each norm"
    table = page[page.index(f"<caption><span>{caption}") :].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>|<th scope=\"row\"[^>]*>(.*?)</th>", table, re.S)
    words = [(first or second).strip() for first, second in cells]
    fits = CLIP.candidate.history[0].fits
    assert words.count("affine") == len(fits)
    assert [words[1:4], words[5:8]] == [["affine", "12 %", "0"], ["affine", "6 %", "1,048,576"]]
    assert "samples held out from the fit" in page
    assert "held out from the fit" not in html_report(samples.exact_passed())
    step = CLIP.candidate.history[0]
    lost = replace(step, fits=[replace(fits[0], held_out_error=None, multiply_adds=None)])
    broken = replace(CLIP, candidate=replace(CLIP.candidate, history=[lost]))
    assert "not finite" in html_report(broken)
