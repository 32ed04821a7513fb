"""The worked example of docs/contributing/write-a-pass.md: one file makes a pass of it."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import normswap as ns
from normswap.passes import pass_called
from normswap.passes.base import Pass
from tests.cli.conftest import Run, files, run  # noqa: F401  (fixtures)
from tests.zoo.exports import FX, model_as

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def equalise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pass]]:
    """The example, as a file of the folder of passes."""
    shutil.copy(_ROOT / "examples" / "equalise.py", tmp_path)
    package = importlib.import_module("normswap.passes")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    kind = pass_called("equalise")
    assert kind is not None
    yield kind
    sys.modules.pop("normswap.passes.equalise")


def test_the_guide_shows_the_example() -> None:
    assert "examples/equalise.py" in (_ROOT / "docs/contributing/write-a-pass.md").read_text()


@pytest.mark.parametrize("form", [FX, "torchscript-14"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_it_is_exact(equalise: type[Pass], form: str, strength: float) -> None:
    model = model_as("timm_vit", form)
    result = ns.swap(model, equalise(strength=strength))  # type: ignore[call-arg]
    assert len(result.done) == 5
    assert ns.validate(model, result.model).passed
    for before, after in zip(result.done, result.model.sites, strict=True):
        assert before.weight is not None
        expected = before.weight / np.abs(before.weight) ** strength
        weight = np.ones_like(expected) if after.weight is None else after.weight
        np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_it_is_a_command_with_its_options(
    equalise: type[Pass],
    run: Run,  # noqa: F811
    files: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shown = " ".join(run("swap", "--help").out.split())
    assert f"equalise {equalise.summary}" in shown
    assert "--strength FLOAT equalise: how far gammas become alike" in shown
    output = tmp_path / "equal.onnx"
    options = ("--to", "equalise", "--powers-of-two", "--json")
    made = run("swap", files / "clip.onnx", "-o", output, *options)
    assert made.status == 0, made.err
    assert made.json["passes"][0]["pass"] == "equalise"
    assert run("validate", files / "clip.onnx", output).status == 0
