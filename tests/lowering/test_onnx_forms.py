"""The forms of norms in an ONNX graph that win where the model is to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import normswap as ns
from normswap.errors import NormswapError
from normswap.graph.onnx.graph import OnnxGraph
from normswap.lowering import measure
from normswap.lowering.onnx_forms import fastest_forms
from normswap.lowering.targets import Runtime, runtime_of
from normswap.passes.norm_operator import OperatorForms
from normswap.timing.paired import Timing
from tests.zoo.exports import FX, model_as


def test_a_target_that_is_not_here_is_an_error() -> None:
    with pytest.raises(NormswapError, match="name one of this machine with --target"):
        runtime_of("generic")
    model = model_as("timm_vit", "torchscript-14")
    with pytest.raises(NormswapError, match="--target: 'tpu' is none of onnxruntime-cpu"):
        ns.swap(model, to="fused", lowering=ns.Lowering(target="tpu"))
    with pytest.raises(NormswapError, match="export the model to ONNX"):
        ns.swap(
            model_as("timm_vit", FX), to="fused", lowering=ns.Lowering(target="openvino", tune=True)
        )


def _times(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str], float]) -> None:
    """Lets each form take what ``seconds`` says."""

    def compare(runs: dict[str, Callable[[], object]], reference: str, rounds: int) -> dict:
        for run in runs.values():
            run()
        ratios = {name: seconds(name) / seconds(reference) for name in runs}
        return {n: Timing(1.0, r, r * 0.99, r * 1.01) for n, r in ratios.items()}

    monkeypatch.setattr(measure, "compare", compare)


def _operators(model: ns.Model) -> list[str]:
    return [node.op_type for node in model.to_onnx_ir().graph]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_faster_operator_for_norm_and_sum_is_refused_where_it_is_less_accurate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime's on the CPU loses digits at a large mean."""
    _times(monkeypatch, lambda form: {"SkipLayerNormalization": 0.1}.get(form, 1.0))
    model = model_as("timm_vit", "torchscript-14")
    result = ns.swap(model, to="fused", lowering=ns.Lowering(target="onnxruntime-cpu", tune=True))
    assert _operators(result.model).count("LayerNormalization") == 5
    assert "SkipLayerNormalization" not in _operators(result.model)
    assert any("times what is allowed" in note for note in result.notes)


def test_norm_and_sum_become_one_operator_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    _times(monkeypatch, lambda form: {"SkipLayerNormalization": 0.1}.get(form, 1.0))
    monkeypatch.setattr(measure, "_FACTOR", 1e6)  # as if its digits were those of the original
    model = model_as("timm_vit", "torchscript-14")
    result = ns.swap(model, to="fused", lowering=ns.Lowering(target="onnxruntime-cpu", tune=True))
    operators = _operators(result.model)
    assert operators.count("SkipLayerNormalization") == 4
    assert operators.count("LayerNormalization") == 1  # the first reads no sum of two values
    feeds = {s.name: np.array(model.examples[s.name]) for s in model.inputs}
    for got, wanted in zip(
        result.model.run(feeds).values(), model.run(feeds).values(), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    again = ns.swap(result.model, to="fused")
    assert not again.modified


def test_norms_stay_spelled_out_where_the_operator_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _times(monkeypatch, lambda form: 1.0 if form == "the original" else 1.5)
    model = model_as("timm_vit", "torchscript-14")
    result = ns.swap(model, to="fused", lowering=ns.Lowering(target="onnxruntime-cpu", tune=True))
    assert not result.modified
    assert len(result.skipped) == 5
    assert all("no form is faster" in reason for _, reason in result.skipped)


def test_a_runtime_that_fails_at_a_form_goes_without_it() -> None:
    real = runtime_of("onnxruntime-cpu")

    def refuses(proto: onnx.ModelProto) -> object:
        if any(node.op_type == "LayerNormalization" for node in proto.graph.node):
            raise NormswapError("it has no LayerNormalization")
        return real.compile(proto)

    model = model_as("timm_vit", "torchscript-14")
    runtime = Runtime("one", refuses)  # type: ignore[arg-type]
    assert isinstance(model.graph, OnnxGraph)
    plan = fastest_forms(model.graph, model.sites, OperatorForms(), runtime)
    assert not plan.forms
    assert all("it has no LayerNormalization" in reason for _, reason in plan.skipped)
