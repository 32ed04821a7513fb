"""``normswap demo``: one run, looked at from all sides."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import normswap as ns
from normswap.demo.tasks import Task, tasks
from normswap.extras import install_command
from tests.cli.conftest import Run
from tests.effort import ALL

# digits-clip's blocks in the image and the text tower; without NORMSWAP_ZOO=all the first few.
IMAGE_BLOCKS, TEXT_BLOCKS = (6, 4) if ALL else (2, 1)


def _tasks(folder: Path) -> list[Task]:
    vit, clip = tasks()
    return [vit, clip if ALL else replace(clip, folder=_shallow(clip.folder, folder))]


def _shallow(source: Path, target: Path) -> Path:
    """The CLIP in ``source`` with its first blocks only."""
    transformers = pytest.importorskip("transformers")
    clip = transformers.CLIPModel.from_pretrained(source, local_files_only=True)
    for part, blocks in (("vision", IMAGE_BLOCKS), ("text", TEXT_BLOCKS)):
        encoder = getattr(clip, f"{part}_model").encoder
        encoder.layers = encoder.layers[:blocks]
        getattr(clip.config, f"{part}_config").num_hidden_layers = blocks
    clip.save_pretrained(target / source.name)
    return target / source.name


def test_demo(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    chosen = _tasks(tmp_path / "models")
    monkeypatch.setattr("normswap.demo.run_demo.tasks", lambda: chosen)
    monkeypatch.setattr("normswap.timing.paired.ROUNDS", 4)
    folder = tmp_path / "made" / "demo"
    outcome = run("demo", "-o", folder)
    assert outcome.status == 0, outcome.out
    assert "[0/24] digits-vit: capturing in torch\n" in outcome.err
    assert "Traceback" not in outcome.err

    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == "normswap.demo/1"
    assert results["passed"]
    variants = {(v["model"], v["kind"]): v for v in results["variants"]}
    assert len(variants) == 4
    in_image, in_text = 2 * IMAGE_BLOCKS + 2, 2 * TEXT_BLOCKS + 1
    for (model, kind), found in variants.items():
        assert re.search(rf"^{model} +{kind} ", outcome.out, re.MULTILINE)
        vit = model == "digits-vit"
        assert found["passed"]
        assert found["fused_parity"]["passed"]
        assert found["folded_parity"]["passed"]
        assert found["norms"] == found["fused"] == (13 if vit else in_image + in_text)
        assert found["folded"] == found["swapped"] == (13 if vit else in_image)
        assert (found["tower"], found["left"]) == ("" if vit else "image", 0)
        # 16 patches and a class token in blocks of 2 norms; the ViT's final norm reads them all,
        # CLIP's two others are on the way in and at the class token
        image = 2 * 17 * 13 if vit else 2 * (17 * (in_image - 1) + 1)
        text = 0 if vit else 2 * 12 * in_text
        assert (found["statistics_before"], found["statistics_after"]) == (image + text, text)
        accuracy = found["accuracy"]
        assert accuracy["fused"] == pytest.approx(accuracy["original"], abs=0.002)
        if vit or ALL:
            _check_accuracies(model, accuracy)
        assert set(found["timing"]) == {"original", "spelled-out", "fused", "folded"}
        assert found["timing"]["original"]["ratio"] == 1
        assert all(t["low"] <= t["ratio"] <= t["high"] for t in found["timing"].values())
    for model in ("digits-vit", "digits-clip"):  # the same passes, the same figures
        fx, onnx = (variants[model, kind]["accuracy"] for kind in ("fx", "onnx"))
        assert fx == pytest.approx(onnx, abs=0.004)

    readme = (folder / "README.md").read_text()
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == set(results["files"]) | {"results.json"} == _links(readme) | {"README.md"}
    assert sum(name.endswith((".pt2", ".onnx")) for name in written) == 2 * (5 + 6)
    documents = [json.loads((folder / n).read_text()) for n in written if n.endswith(".json")]
    assert {d["schema"].rpartition("/")[0] for d in documents} == {
        "normswap.demo",
        "normswap.inspection",
        "normswap.validation",
    }

    for kind, suffix in (("fx", "pt2"), ("onnx", "onnx")):  # what was written can be used
        models = folder / "digits-vit" / kind
        pair = [models / f"{name}.{suffix}" for name in ("affine", "folded")]
        assert run("validate", *pair).status == 0
        assert run("inspect", pair[1]).status == 1


def _check_accuracies(model: str, accuracy: dict[str, float]) -> None:
    original, moments, copied = {
        "digits-vit": (0.972, 0.85, 0.75),
        "digits-clip": (0.981, 0.92, 0.9),
    }[model]
    assert accuracy["original"] == pytest.approx(original, abs=0.01)
    assert accuracy["moments"] > moments
    assert accuracy["copied"] > copied
    assert accuracy["affine"] > accuracy["original"] - 0.015


def test_the_whole_clip_keeps_its_accuracy() -> None:
    pytest.importorskip("sklearn")
    (_, task) = tasks()
    model = ns.load(task.folder)
    swaps: dict[str, ns.Pass] = {
        "copied": ns.BatchNorm(fit="copy"),
        "moments": ns.BatchNorm(ffn_batchnorm=True),
        "affine": ns.Affine(refit_writers=True),
    }
    accuracy = {"original": task.accuracy(model)}
    for name, how in swaps.items():
        swapped = ns.swap(model, how, data=task.calibration_for(model)).model
        accuracy[name] = task.accuracy(ns.fold(swapped).model)
    _check_accuracies(task.name, accuracy)


def _links(readme: str) -> set[str]:
    return set(re.findall(r"^- \[(.*?)\]\(\1\)", readme, re.MULTILINE))


@pytest.mark.parametrize("module", ["sklearn.datasets", "transformers"])
def test_a_package_that_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = run("demo", "-o", tmp_path / "demo").error
    assert error.endswith(install_command("demo"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "demo"):
        assert str(folder) in run("demo", "-o", folder).error
    assert (tmp_path / "file").read_text() == "kept"
