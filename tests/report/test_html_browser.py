"""The page in headless Chromium: it loads nothing, complains of nothing and fits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import normswap as ns
from normswap.assets import digits
from normswap.parity.report import ValidationReport
from normswap.report.html.document import page_text
from normswap.report.html.headroom import headroom_page
from normswap.report.html.page import html_report
from normswap.report.html.training import Training
from tests.effort import thorough
from tests.report import html_samples as samples
from tests.report.test_headroom_page import found as growing

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [thorough, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
A4_WIDTH = 688  # CSS pixels between the margins

# Every element that ends outside the window, but for those in a container that scrolls.
OUTSIDE = """() => [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll') || e.classList.contains('scroll'))
    .filter(e => e.getClientRects().length)
    .map(e => [e.getBoundingClientRect(), e])
    .filter(([r, e]) => r.right > document.documentElement.clientWidth + 1 || r.left < -1)
    .map(([r, e]) => `${e.tagName} ${e.getAttribute('class')} ${e.textContent.slice(0, 60)}`)"""
# The same in print, where nothing can be scrolled.
CUT_OFF = OUTSIDE.replace("!e.closest('.scroll') || e.classList.contains('scroll')", "true")
# Pairs of words in a picture that lie over each other.
OVERLAPS = """() => [...document.querySelectorAll('.plot > svg')].flatMap(svg => {
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.getBoundingClientRect(), t])
    return boxes.flatMap(([a, s], i) => boxes.slice(i + 1)
        .filter(([b]) => a.left < b.right - 1 && b.left < a.right - 1
                      && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        .map(([b, t]) => `${s.textContent} / ${t.textContent}`))})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    clip, bench = samples.clip_approximate()
    made = {
        "passed": html_report(samples.exact_passed(), samples.bench_of(samples.exact_passed())),
        "failed": html_report(samples.exact_failed()),
        "clip": html_report(clip, bench),
        "answered": html_report(samples.answered()),
        "trained": html_report(clip, training=_training(clip)),
        "hostile": html_report(*samples.hostile()),
        "bare": html_report(samples.bare("approximate")),
        "headroom": page_text(headroom_page(growing())),
        "digits-vit": _digits_vit(),
        "digits-clip": _digits_clip(),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def _training(report: ValidationReport) -> Training:
    losses = [0.3 + 4 * 0.99**step for step in range(1234)]
    return Training(losses, report, {"optimizer": "AdamW", "learning rate": "1e-3"})


def _digits_vit() -> str:
    """An exact swap of the trained ViT, with times."""
    model = ns.load(digits.DIGITS_VIT)
    swapped = ns.swap(model, to="rmsnorm").model
    report = ns.validate(model, swapped)
    return html_report(report, ns.bench([model, swapped], rounds=6))


def _digits_clip() -> str:
    """The trained CLIP without its image tower's norms, on images and captions of their classes."""
    model, split = ns.load(digits.DIGITS_CLIP), digits.load_digits_split()
    captions = [digits.CAPTIONS[label][2] for label in split.test_labels[:96]]
    pairs = {"pixel_values": split.test_images[:96], "input_ids": digits.caption_ids(captions)}
    swapped = ns.swap(model, to="affine", data=split.train_images, samples=64).model
    folded = ns.fold(swapped).model
    labels = split.test_labels[:96]
    report = ns.validate(
        model, folded, data=pairs, labels=labels, contract="approximate", bisect=True
    )
    assert report.answers is not None
    assert report.answers.zero_shot
    assert all(sample.image for sample in report.answers.samples)
    return html_report(report)


NAMES_OF_PAGES = [
    "answered",
    "passed",
    "failed",
    "clip",
    "trained",
    "hostile",
    "bare",
    "headroom",
    "digits-vit",
    "digits-clip",
]


SECTIONS = {"headroom": 4}
"""At least; of a report on two models 8."""


@pytest.mark.parametrize("name", NAMES_OF_PAGES)
def test_page(browser: playwright.Browser, pages: dict[str, Path], name: str) -> None:
    """At the widths of a phone, a desk and A4, light and dark, all tables open."""
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    for heading in page.locator("#verdict h1, section[aria-labelledby] > h2").all():
        assert heading.is_visible()
    sections = page.locator("section[aria-labelledby] > h2").count()
    assert page.locator("nav a").count() == sections >= SECTIONS.get(name, 8)
    backgrounds = set()
    for summary in page.locator("summary").all():
        summary.click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OUTSIDE) == []
            if name != "hostile":
                assert page.evaluate(OVERLAPS) == []
    assert backgrounds == {"rgb(255, 255, 255)", "rgb(20, 23, 28)"}
    page.set_viewport_size({"width": A4_WIDTH, "height": 970})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CUT_OFF) == []
    page.close()
    assert said == []
    assert asked == [pages[name].as_uri()]


def test_policy_blocks_what_slips_in(browser: playwright.Browser, pages: dict[str, Path]) -> None:
    """A script, a style and an image that somebody adds to the file do nothing."""
    file = pages["bare"].with_name("edited.html")
    script = '<script>document.title = "run"</script>'
    dot = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    added = f'{script}<style>h1 {{color: red}}</style><img src="data:image/gif;base64,{dot}">'
    text = pages["bare"].read_text(encoding="utf-8")
    file.write_text(text.replace("<main>", f"<main>{added}"), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.title() != "run"
    assert page.locator("h1").evaluate("e => getComputedStyle(e).color") != "rgb(255, 0, 0)"
    assert page.locator("img").evaluate("e => e.naturalWidth") == 0
    page.close()
