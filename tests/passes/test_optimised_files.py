"""Files that ONNX Runtime has optimised: its norms are located, and what is left has a reason."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
from onnxruntime.transformers.optimizer import optimize_model

import normswap as ns
from tests.zoo.exports import model_as


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bert.onnx, extended.onnx by the runtime's own optimiser, skip.onnx by that for
    transformers."""
    path = tmp_path_factory.mktemp("optimised")
    ns.save(model_as("hf_bert", "torchscript-14"), path / "bert.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path / "extended.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(path / "bert.onnx", options, ["CPUExecutionProvider"])
    made = optimize_model(str(path / "bert.onnx"), "bert", num_heads=0, hidden_size=0, opt_level=0)
    made.save_model_to_file(str(path / "skip.onnx"))
    return path


@pytest.mark.parametrize("name", ["extended", "skip"])
def test_all_norms_are_located_and_held_against_the_original(folder: Path, name: str) -> None:
    original, optimised = (ns.load(folder / f"{n}.onnx") for n in ("bert", name))
    assert len(optimised.sites) == len(original.sites) == 5
    report = ns.validate(original, optimised)
    assert report.passed, report.findings
    assert len(report.sites) == 5


def test_what_computes_a_sum_as_well_says_so(folder: Path) -> None:
    optimised = ns.load(folder / "skip.onnx")
    fixed = [site.fixed for site in optimised.sites if site.fixed]
    assert fixed == ["SkipLayerNormalization computes the sum that it normalises as well"] * 4
    assert [why for _, why in ns.fold_affine(optimised).skipped[1:]] == fixed


def test_the_runtimes_own_norm_needs_no_newer_opset(folder: Path) -> None:
    """It is in ONNX's domain in a file of opset 14, which nothing can raise."""
    optimised = ns.load(folder / "extended.onnx")
    assert optimised.graph.opset < 17  # type: ignore[attr-defined]
    result = ns.fold_affine(optimised)
    assert not any("opset" in why for _, why in result.skipped)
    swapped = ns.swap(optimised, to="rmsnorm")
    assert len(swapped.done) == 1
    assert ns.validate(optimised, swapped.model).passed
    (why,) = {why for _, why in swapped.skipped if "embeddings" in why}
    assert "is read elsewhere too, by MatMul '/encoder/layer.0/attention/" in why
