"""``normswap inspect --target`` and ``normswap swap --target``."""

from __future__ import annotations

from pathlib import Path

import pytest

from normswap import load
from tests.cli.conftest import Run

_FILE = """
schema = "normswap.capabilities/1"
title = "a made-up NPU"
version = "1.0"
otherwise = "it runs on the CPU"
[others]
runs = false
source = "https://example.com/list"
[[claim]]
operators = ["MatMul", "Sub", "Mul", "Add", "Div", "Sqrt", "Conv", "Softmax", "Transpose"]
source = "https://example.com/list"
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "made-up.toml"
    path.write_text(_FILE)
    return path


def test_which_norms_run_and_what_mends_the_others(run: Run, files: Path, target: Path) -> None:
    document = run("inspect", files / "spelled-out.onnx", "--target", target, "--json").json
    assert document["schema"] == "normswap.inspection/1"
    found = document["target"]
    assert found["title"] == "a made-up NPU"
    assert [norm["state"] for norm in found["norms"]] == ["refused"] * 5
    assert all(norm["mended_by"] == ["product"] for norm in found["norms"])
    assert all(norm["source"] == "https://example.com/list" for norm in found["norms"])
    lacking = {lack["operator"]: lack for lack in found["lacking"]}
    assert lacking["Erf"]["count"] == 2
    assert "ReduceMean" not in lacking  # of norms alone
    outcome = run("inspect", files / "spelled-out.onnx", "--target", target)
    assert outcome.status == 0
    assert "a made-up NPU" in outcome.out
    assert "runs 0 of 5 norms as they stand" in outcome.out
    assert "refused: it has no ReduceMean" in outcome.out
    assert "2 Erf, the first at" in outcome.out
    assert "it runs on the CPU" in outcome.out


def test_where_no_dialect_fits_it_says_what_else_would(run: Run, files: Path, target: Path) -> None:
    target.write_text(_FILE.replace('"Div", ', ""))
    found = run("inspect", files / "spelled-out.onnx", "--target", target, "--json").json["target"]
    assert all(norm["mended_by"] == [] for norm in found["norms"])
    assert all(norm["else_by"] == ["affine"] for norm in found["norms"])
    more = '"Abs", "Exp", "Clip", "BatchNormalization", "ReduceMean", "RMSNormalization", '
    target.write_text(_FILE.replace('"Div", ', more))
    found = run("inspect", files / "spelled-out.onnx", "--target", target, "--json").json["target"]
    wanted = ["rmsnorm", "predicted", "affine", "batchnorm"]
    assert all(norm["else_by"] == wanted for norm in found["norms"])
    out = run("inspect", files / "spelled-out.onnx", "--target", target).out
    assert "no dialect; rmsnorm, predicted, affine, batchnorm" in out


def test_a_torch_model_is_judged_as_the_file_that_it_becomes(run: Run, files: Path) -> None:
    found = run("inspect", files / "vit.pt2", "--target", "mnn", "--json").json["target"]
    assert [norm["state"] for norm in found["norms"]] == ["runs"] * 5
    assert not found["lacking"]  # no IsNaN behind a softmax


def test_swap_for_a_target(run: Run, files: Path, target: Path, tmp_path: Path) -> None:
    output = tmp_path / "swapped.onnx"
    outcome = run("swap", files / "spelled-out.onnx", "-o", output, f"--target={target}", "--json")
    (step,) = outcome.json["passes"]
    assert step["pass"] == "dialect"
    assert len(step["done"]) == 5
    assert "ReduceMean" not in [node.op for node in load(output).graph.nodes]
    same = run("swap", output, "-o", output, "--to", "dialect", "--target", target, "--json").json
    assert not same["passes"][0]["modified"]


def test_bad_use_is_told(run: Run, files: Path, tmp_path: Path) -> None:
    vit, out = files / "spelled-out.onnx", tmp_path / "o.onnx"
    assert "'tpu' is none of" in run("inspect", vit, "--target", "tpu").error
    assert "'tpu' is none of" in run("swap", vit, "-o", out, "--target", "tpu").error
    assert "generic" in run("inspect", vit, "--target", "generic").error
    assert "name it with --target" in run("swap", vit, "-o", out, "--to", "dialect").error
    assert "no_such.toml" in run("swap", vit, "-o", out, "--target", "no_such.toml").error
    assert run("inspect", vit, "--target", "mnn", "--mermaid").status == 2
    assert run("swap", vit, "-o", out).status == 2
    assert not out.exists()
