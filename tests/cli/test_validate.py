"""``normswap validate``: the page, the bisection, the runtimes, and what cannot be compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from normswap import load, save, swap
from tests.cli.conftest import Run
from tests.zoo.exports import model_as


@pytest.fixture(scope="module")
def wrong(files: Path) -> Path:
    """The spelled-out file with another gamma in its second block."""
    proto = onnx.load(files / "spelled-out.onnx")
    for initializer in proto.graph.initializer:
        if initializer.name.endswith("layers.1.layernorm_before.weight"):
            array = numpy_helper.to_array(initializer).copy()
            array[3] *= 1.5
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    out = files / "wrong.onnx"
    onnx.save(proto, out)
    return out


def test_bisect_and_run_again(
    run: Run, files: Path, wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("validate", files / "vit.pt2", wrong, "--bisect")
    assert outcome.status == 1
    assert "\nbisection: they part at vit.layers.1.layernorm_before" in outcome.out
    assert "--data wrong-reproducer.npz" in outcome.out
    assert [file.name for file in tmp_path.iterdir()] == ["wrong-reproducer.npz"]
    again = run("validate", files / "vit.pt2", wrong, "--data", "wrong-reproducer.npz", "--json")
    assert again.status == 1
    found = {finding["probe"] for finding in again.json["findings"] if finding["fatal"]}
    assert "data" in found


def test_page(run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, out = tmp_path / "report.html", tmp_path / "fused.onnx"
    save(swap(load(files / "spelled-out.onnx"), to="fused", sites="*before").model, out)
    args = ["validate", str(files / "spelled-out.onnx"), str(out), "--report", str(page)]
    monkeypatch.setattr(sys, "argv", ["normswap", *args])
    outcome = run(*args, "--no-bench", "--json")
    assert outcome.status == 0
    text = page.read_text(encoding="utf-8")
    assert outcome.json["candidate"]["sha256"] in text
    assert f"normswap validate {files / 'spelled-out.onnx'} {out} --report {page}" in text
    assert "swap to fused" in text
    assert json.loads(json.dumps(outcome.json))["candidate"]["history"][0]["done"] == 2


def test_the_page_cannot_be_written(run: Run, files: Path, tmp_path: Path) -> None:
    page = tmp_path / "a file" / "report.html"
    page.parent.touch()
    model = files / "spelled-out.onnx"
    assert run("validate", model, model, "--report", page).error.startswith(f"{page}: ")


def test_two_runtimes(run: Run, files: Path) -> None:
    options = ["--reference-runtime", "torch", "--candidate-runtime", "onnxruntime"]
    outcome = run("validate", files / "vit.pt2", files / "spelled-out.onnx", *options, "--json")
    assert outcome.status == 0, outcome.out
    names = [outcome.json[side]["runtime"].split()[0] for side in ("reference", "candidate")]
    assert names == ["torch", "onnxruntime"]
    refused = run("validate", files / "spelled-out.onnx", files / "vit.pt2", *options)
    assert "has no torch graph to run" in refused.error


def test_an_operator_that_the_runtime_lacks(run: Run, files: Path, tmp_path: Path) -> None:
    proto = onnx.load(files / "spelled-out.onnx")
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    last = proto.graph.node[-1]
    name, last.output[0] = last.output[0], "before"
    proto.graph.node.append(
        onnx.helper.make_node("Mystery", ["before"], [name], domain="com.example")
    )
    onnx.save(proto, tmp_path / "mystery.onnx")
    model = files / "spelled-out.onnx"
    outcome = run(
        "validate", model, tmp_path / "mystery.onnx", "--candidate-runtime", "onnxruntime"
    )
    assert outcome.status == 1
    assert "Mystery" in outcome.out
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("contract", ["exact", "approximate"])
def test_models_that_cannot_be_compared(
    run: Run, files: Path, tmp_path: Path, contract: str
) -> None:
    def refused(reference: Path, candidate: Path) -> str:
        return run("validate", reference, candidate, "--contract", contract).error

    vit, clip = files / "vit.pt2", files / "clip.onnx"
    assert "has 1 inputs (pixel_values) and clip.onnx has 3" in refused(vit, clip)
    words = tmp_path / "words.onnx"
    proto = onnx.load(clip)
    for initializer in proto.graph.initializer:
        if initializer.name.endswith("token_embedding.weight"):
            rows = numpy_helper.to_array(initializer)
            more = np.concatenate([rows, rows[:5]])
            initializer.CopyFrom(numpy_helper.from_array(more, initializer.name))
    onnx.save(proto, words)
    assert "have other vocabularies, of " in refused(clip, words)
    other = tmp_path / "other.onnx"
    save(model_as("timm_vit", "torchscript-17"), other)
    assert "differ: batchx1x8x8 and batchx3x32x32" in refused(vit, other)


def test_a_simulation(run: Run, files: Path) -> None:
    model = files / "spelled-out.onnx"
    told = run("validate", model, model, "--simulate", "float16")
    assert told.status == 0
    assert "approximate contract measured" in told.out
    outcome = run("validate", files / "vit.pt2", model, "--simulate", "bfloat16", "--json")
    assert outcome.json["candidate"]["runtime"] == "every value rounded to bfloat16"
    refused = run("validate", model, model, "--simulate", "float16", "--contract", "exact")
    assert "simulate needs contract approximate" in refused.error


def test_data_that_does_not_fit(run: Run, files: Path, tmp_path: Path) -> None:
    model, file = files / "vit.pt2", tmp_path / "data.npy"
    np.save(file, np.zeros((4, 3, 8, 8), np.float32))
    assert "takes Nx1x8x8, got 4x3x8x8" in run("validate", model, model, "--data", file).error
