"""Glyphs: classes that can be told apart, from fonts that no other split has."""

from __future__ import annotations

from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from normswap.errors import NormswapError
from normswap.io.data import load_data
from normswap.io.glyphs import PER_CLASS, SPLITS, Glyphs, _alphabet
from tests.io.test_data import make_model

OWN = Path(str(files("matplotlib"))) / "mpl-data" / "fonts" / "ttf"
MODEL = make_model(pixels=(("batch", 1, 32, 32), np.float32))


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four families in several styles, a font of boxes, one of symbols, and what is no font."""
    folder = tmp_path_factory.mktemp("fonts")
    (folder / "deeper").mkdir()
    for name in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "Serif", "Serif-Bold"):
        (folder / "deeper" / f"DejaVu{name}.ttf").symlink_to(OWN / f"DejaVu{name}.ttf")
    for name in ("STIXGeneral.ttf", "LastResortHE-Regular.ttf", "cmsy10.ttf"):
        (folder / name).symlink_to(OWN / name)
    (folder / "damaged.ttf").write_bytes((OWN / "DejaVuSans.ttf").read_bytes()[:5000])
    (folder / "text.otf").write_text("no font")
    return folder


def test_no_family_is_in_two_splits(fonts: Path) -> None:
    families = _alphabet(fonts).families
    names = {split: {family.name for family in families[split]} for split in SPLITS}
    assert all(names.values())
    for a, b in combinations(SPLITS, 2):
        assert not names[a] & names[b]
    assert {"DejaVu Sans", "DejaVu Serif"} <= set().union(*names.values())
    for split in SPLITS:  # a bold one is the same family
        used = {font.path.stem for family in families[split] for font in family.fonts}
        assert ("DejaVuSans" in used) == ("DejaVuSans-Bold" in used)
        assert not any("LastResort" in name for name in used)


def test_classes_do_not_look_alike(fonts: Path) -> None:
    alphabet = _alphabet(fonts)
    assert alphabet.characters.startswith("0123456789abcdefg")
    for alike in ("A\u0391\u0410", "o\u03bf\u043e"):  # in Latin, Greek and Cyrillic
        assert [c in alphabet.characters for c in alike] == [True, False, False]
    assert "\u03a9" in alphabet.characters  # Omega
    for family in alphabet.families["train"]:
        known = [c for c in alphabet.characters if family.has(c)]
        drawn = np.array([family.with_(c)[0].pixels(c) for c in known])
        alike = drawn @ drawn.T - 2 * np.eye(len(known))
        assert alike.max() < 0.98
        assert np.all(np.abs(np.linalg.norm(drawn, axis=1) - 1) < 1e-3)  # none is empty


def test_pictures_are_the_same_each_time(fonts: Path) -> None:
    glyphs = Glyphs(20, fonts)
    images, labels = glyphs.arrays()
    again, same = glyphs.arrays()
    assert (images.tobytes(), labels.tobytes()) == (again.tobytes(), same.tobytes())
    assert images.shape == (20 * PER_CLASS["train"], 1, 32, 32)
    assert np.bincount(labels).tolist() == [PER_CLASS["train"]] * 20
    assert not np.array_equal(images, glyphs.arrays(seed=1)[0])
    assert abs(float(images.mean())) < 0.2
    assert 0.7 < float(images.std()) < 1.3
    assert labels[:20].tolist() != sorted(labels[:20])  # mixed: batches have many classes


def test_a_nearest_mean_reads_fonts_that_it_has_not_seen(fonts: Path) -> None:
    """The labels belong to the pictures: far better than the 1 in 30 of guessing."""
    train, labels = Glyphs(30, fonts).arrays()
    test, expected = Glyphs(30, fonts, "test").arrays()
    means = np.array([train[labels == label].mean(0).reshape(-1) for label in range(30)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found = (test.reshape(len(test), -1) @ means.T).argmax(1)
    assert (found == expected).mean() > 0.3


def test_it_is_a_data_source(fonts: Path) -> None:
    data = load_data(f"glyphs:12?fonts={fonts}&split=validation", MODEL)
    assert data.feeds["pixels"].shape == (12 * PER_CLASS["validation"], 1, 32, 32)
    assert data.labels is not None
    assert sorted(set(data.labels.tolist())) == list(range(12))
    assert load_data(f"glyphs:12?fonts={fonts}", MODEL, samples=7).count == 7
    small = make_model(pixels=(("batch", 3, 8, 8), np.float32))
    with pytest.raises(NormswapError, match=r"^glyphs:12.*pixels"):
        load_data(f"glyphs:12?fonts={fonts}", small)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("glyphs:", "takes a number of classes from 2 on"),
        ("glyphs:1", "takes a number of classes from 2 on"),
        ("glyphs:many", "takes a number of classes from 2 on"),
        ("glyphs:99999999", "takes a number of classes from 2 on"),
        ("glyphs:10?font=x", "takes a number of classes from 2 on"),
        ("glyphs:10?split=all", "split 'all' is none of train, validation, test"),
        ("glyphs:10?fonts=not/there", "not/there is no folder"),
    ],
)
def test_names_that_are_none(text: str, error: str) -> None:
    with pytest.raises(NormswapError, match=error) as caught:
        load_data(text, MODEL)
    assert str(caught.value).startswith(text)


def test_too_few_fonts(fonts: Path, tmp_path: Path) -> None:
    with pytest.raises(NormswapError, match=r"holds no font; install fonts-liberation, .*noto"):
        Glyphs(10, tmp_path).arrays()
    (tmp_path / "one.ttf").symlink_to(OWN / "DejaVuSans.ttf")
    (tmp_path / "two.ttf").symlink_to(OWN / "DejaVuSerif.ttf")
    with pytest.raises(NormswapError, match=r"are enough for 0 classes.*install fonts-liberation"):
        Glyphs(10, tmp_path / ".").arrays()
    with pytest.raises(NormswapError, match=r"glyphs:5000: the fonts in .* for \d\d\d classes"):
        Glyphs(5000, fonts).arrays()
