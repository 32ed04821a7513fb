"""``normswap demo``: one run, looked at from all sides."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normswap.demo.jobs import run_jobs
from normswap.demo.tasks import tasks
from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.io.load import load
from tests.cli.conftest import Outcome, Run
from tests.effort import ALL

PROCESSES = pytest.mark.skipif(not ALL, reason="each imports torch: NORMSWAP_ZOO=all")
PAGE = "folded.approximate.html"


@pytest.mark.skipif(not ALL, reason="two minutes: NORMSWAP_ZOO=all")
def test_the_whole_demo(run: Run, tmp_path: Path) -> None:
    """Both models in both kinds of graph, two at a time where there are processors for it."""
    folder = tmp_path / "made" / "demo"
    outcome = run("demo", "-o", folder)
    variants = _check(outcome, folder, 4)
    for model in ("digits-vit", "digits-clip"):  # the same passes, the same figures
        fx, onnx = (variants[model, kind]["accuracy"] for kind in ("fx", "onnx"))
        for name in ("original", "fused", "affine"):
            assert fx[name] == pytest.approx(onnx[name], abs=0.004)
    assert f"Open first: {folder / 'digits-clip' / 'onnx' / PAGE}\n" in outcome.out
    for kind, suffix in (("fx", "pt2"), ("onnx", "onnx")):  # what was written can be used
        assert run("inspect", folder / "digits-vit" / kind / f"folded.{suffix}").status == 1


def test_one_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normswap.demo.run_demo.JOBS", [("digits-vit", "onnx")])
    folder = tmp_path / "made" / "demo"
    outcome = run("demo", "-o", folder)
    _check(outcome, folder, 1)
    models = folder / "digits-vit" / "onnx"
    page = (models / PAGE).read_text()
    for name in ("original.onnx", "folded.onnx"):
        data = (models / name).read_bytes()
        assert str(models / name) in page
        assert hashlib.sha256(data).hexdigest() in page
        assert f"{len(data) / 1e6:.1f}\N{NO-BREAK SPACE}MB" in page
    assert "Accuracy: 97.2\N{NO-BREAK SPACE}% \u2192 96.9\N{NO-BREAK SPACE}%" in page
    assert "retrieval" not in page
    assert page.count('src="data:image/png;base64,') == 24
    assert run("validate", models / "affine.onnx", models / "folded.onnx").status == 0
    (found,) = json.loads((folder / "results.json").read_text())["variants"]
    task = next(task for task in tasks() if task.name == "digits-vit")
    for name, file in (("original", "original.onnx"), ("affine", "folded.onnx")):
        assert task.accuracy(load(models / file)) == found["accuracy"][name]


def _check(outcome: Outcome, folder: Path, jobs: int) -> dict[tuple[str, str], Any]:
    """What holds of every run; the variants by model and kind."""
    pytest.importorskip("sklearn")
    assert outcome.status == 0, outcome.out
    assert f"[0/{5 * jobs}] digits-" in outcome.err
    assert "Traceback" not in outcome.err
    commands = outcome.out.splitlines()[-3:]
    assert [command.split()[:3] for command in commands] == [
        ["normswap", verb, "model.onnx"] for verb in ("inspect", "swap", "validate")
    ]
    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == "normswap.demo/2"
    assert results["passed"]
    variants = {(v["model"], v["kind"]): v for v in results["variants"]}
    assert len(variants) == jobs
    for (model, kind), found in variants.items():
        assert re.search(rf"^{model} +{kind} ", outcome.out, re.MULTILINE)
        vit = model == "digits-vit"
        assert found["passed"]
        assert found["fused_parity"]["passed"]
        assert found["folded_parity"]["passed"]
        assert found["norms"] == found["fused"] == (13 if vit else 23)
        assert found["folded"] == found["swapped"] == (13 if vit else 14)
        assert (found["tower"], found["left"]) == ("" if vit else "image", 0)
        # 16 patches and a class token in blocks of 2 norms; the ViT's final norm reads them all,
        # CLIP's two others are on the way in and at the class token
        image = 2 * 17 * 13 if vit else 2 * (17 * 13 + 1)
        text = 0 if vit else 2 * 12 * 9
        assert (found["statistics_before"], found["statistics_after"]) == (image + text, text)
        accuracy = found["accuracy"]
        assert accuracy["fused"] == pytest.approx(accuracy["original"], abs=0.002)
        _check_accuracies(model, kind, accuracy)
        _check_report(folder / model / kind, accuracy)
    readme = (folder / "README.md").read_text()
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == set(results["files"]) | {"results.json"} == _links(readme) | {"README.md"}
    documents = [json.loads((folder / n).read_text()) for n in written if n.endswith(".json")]
    assert {d["schema"].rpartition("/")[0] for d in documents} == {
        "normswap.demo",
        "normswap.inspection",
        "normswap.validation",
    }
    return variants


def _check_report(folder: Path, accuracy: dict[str, float]) -> None:
    """The report's accuracies are those of the table, and no text is called an image's own."""
    report = json.loads((folder / "folded.approximate.json").read_text())
    (scored,) = (o for o in report["outputs"] if o["accuracy_reference"] is not None)
    assert scored["accuracy_reference"] == accuracy["original"]
    assert scored["accuracy_candidate"] == accuracy["affine"]
    assert report["retrieval"] is None
    assert sum(report["answers"]["counts"].values()) == 540


def _check_accuracies(model: str, kind: str, accuracy: dict[str, float]) -> None:
    original, moments, copied = {
        "digits-vit": (0.972, 0.85, 0.75),
        "digits-clip": (0.981, 0.92, 0.9),
    }[model]
    assert accuracy["original"] == pytest.approx(original, abs=0.01)
    if kind == "onnx":
        assert accuracy["moments"] > moments
        assert accuracy["copied"] > copied
    else:  # the same BatchNorms, and they take their time
        assert accuracy["moments"] is accuracy["copied"] is None
    assert accuracy["affine"] > accuracy["original"] - 0.015


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


def test_what_starts_the_processes_does_without_torch() -> None:
    """Importing it takes seconds, in which no process would work yet."""
    code = "import sys, normswap.demo.run_demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _doubled(number: int, announce: Callable[[str], None]) -> int:
    announce(f"doubling {number}")
    if number > 2:
        raise NormswapError(f"{number} is too large")
    return 2 * number


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=PROCESSES)])
def test_jobs_give_their_results_in_order(processes: int) -> None:
    said: list[str] = []
    assert run_jobs(_doubled, [2, 1], processes, said.append) == [4, 2]
    assert sorted(said) == ["doubling 1", "doubling 2"]
    with pytest.raises(NormswapError, match="3 is too large"):
        run_jobs(_doubled, [3, 1], processes, said.append)
