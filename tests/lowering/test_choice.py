"""The form that is taken is exact, and not slower than what was there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import normswap as ns
from normswap.errors import NormswapError
from normswap.lowering import choice
from normswap.lowering.cache import key_of, recall, remember
from normswap.lowering.choice import Measured, choose, described
from normswap.lowering.runtimes import Runtime, runtime_of
from normswap.timing.paired import Timing
from tests.zoo.exports import FX, model_as

_ORIGINAL = Measured(1.0, 1.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("default", "other", "taken"),
    [
        (Measured(0.5, 0.4, 0.6, 0.5), Measured(0.3, 0.2, 0.35, 0.5), "other"),
        (Measured(0.5, 0.4, 0.6, 0.5), Measured(0.3, 0.2, 0.45, 0.5), "default"),  # not clearly
        (Measured(0.5, 0.4, 0.6, 0.5), Measured(0.1, 0.1, 0.1, 1.1), "default"),  # not exact
        (Measured(1.0, 0.9, 1.1, 0.5), Measured(1.2, 1.1, 1.3, 0.5), "default"),  # no slower
        (Measured(1.2, 1.1, 1.3, 0.5), Measured(1.2, 1.1, 1.3, 0.5), "original"),
        (Measured(0.5, 0.4, 0.6, 2.0), Measured(1.2, 1.1, 1.3, 0.5), "original"),
        (Measured(0.5, 0.4, 0.6, 2.0), Measured(0.8, 0.7, 0.9, 0.5), "other"),
        (Measured(refusal="no"), Measured(refusal="no"), "original"),
    ],
)
def test_what_is_taken(default: Measured, other: Measured, taken: str) -> None:
    measured = {"original": _ORIGINAL, "default": default, "other": other}
    assert choose(measured, "default") == taken


def test_the_reason_names_times_errors_and_refusals() -> None:
    measured = {
        "original": _ORIGINAL,
        "a": Measured(0.5, 0.4, 0.6, 3.0),
        "b": Measured(refusal="it refuses"),
    }
    told = described(measured, "original")
    assert told == (
        "time beside original: a 0.50 (0.40-0.60), error 3.0 times what is allowed; b it refuses"
    )


def test_what_was_measured_is_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = key_of("runtime 1", "shape")
    assert recall(key, ["a"]) is None
    remember(key, {"a": 1})
    assert (recall(key, ["a"]) or {})["a"] == 1
    assert recall(key, ["a", "b"]) is None
    assert key != key_of("runtime 2", "shape")
    (file,) = (tmp_path / "normswap" / "tuning").iterdir()
    for damaged in ("", "[]", "{", '{"schema": "another", "a": 1}'):
        file.write_text(damaged)
        assert recall(key, ["a"]) is None


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "normswap").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember("key", {"a": 1})
    assert recall("key", ["a"]) is None


def test_a_target_that_is_not_here_is_an_error() -> None:
    with pytest.raises(NormswapError, match="name one of this machine with --target"):
        runtime_of("generic")
    model = model_as("timm_vit", "torchscript-14")
    with pytest.raises(NormswapError, match="--target: 'tpu' is none of onnxruntime-cpu"):
        ns.swap(model, ns.Fused(target="tpu"))
    with pytest.raises(NormswapError, match="export the model to ONNX"):
        ns.swap(model_as("timm_vit", FX), ns.Fused(target="openvino", tune=True))


def _times(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str], float]) -> None:
    """Lets each form take what ``seconds`` says."""

    def compare(runs: dict[str, Callable[[], object]], reference: str, rounds: int) -> dict:
        for run in runs.values():
            run()
        ratios = {name: seconds(name) / seconds(reference) for name in runs}
        return {n: Timing(1.0, r, r * 0.99, r * 1.01) for n, r in ratios.items()}

    monkeypatch.setattr(choice, "compare", compare)


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
    result = ns.swap(model, ns.Fused(target="onnxruntime-cpu", tune=True))
    assert _operators(result.model).count("LayerNormalization") == 5
    assert "SkipLayerNormalization" not in _operators(result.model)
    assert any("times what is allowed" in note for note in result.notes)


def test_norm_and_sum_become_one_operator_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    _times(monkeypatch, lambda form: {"SkipLayerNormalization": 0.1}.get(form, 1.0))
    monkeypatch.setattr(choice, "_FACTOR", 1e6)  # as if its digits were those of the original
    model = model_as("timm_vit", "torchscript-14")
    result = ns.swap(model, ns.Fused(target="onnxruntime-cpu", tune=True))
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
    result = ns.swap(model, ns.Fused(target="onnxruntime-cpu", tune=True))
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
    from normswap.lowering.onnx_norms import tuned

    plan = tuned(model, ns.locate(model), Runtime("one", refuses), None)  # type: ignore[arg-type]
    assert not plan.forms
    assert all("it has no LayerNormalization" in reason for _, reason in plan.skipped)
