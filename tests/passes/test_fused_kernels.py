"""Norms of a torch graph that run as kernels in inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import normswap as ns
from normswap.lowering import torch_norms
from normswap.lowering.choice import Measured
from normswap.passes import Fused
from normswap.pipelines import apply_for_inference
from tests.zoo.exports import FX, model_as


def _calls(module: torch.fx.GraphModule) -> list[str]:
    return [
        str(n.target) for n in module.graph.nodes if "norm" in str(n.target) and n.op != "get_attr"
    ]


def test_a_pre_norm_vit_works_in_place_but_for_its_first_norm() -> None:
    model = model_as("timm_vit", FX)
    result = ns.swap(model, to="fused")
    assert [s.name for s in result.done] == [s.name for s in ns.locate(model)[1:]]
    ((first, reason),) = result.skipped
    assert first.role == "pre_attention"
    assert reason.endswith("what it would overwrite in place is still needed")
    assert result.notes == ["4 norms run as add_layer_norm_ in inference"]
    in_place = ["normswap.add_layer_norm_.default"] * 4
    assert _calls(result.model.to_inference()) == ["aten.layer_norm.default", *in_place]
    assert _calls(result.model.to_torch()) == ["aten.layer_norm.default"] * 5  # to be trained
    assert not model.graph.kernels()


def test_where_nothing_can_be_overwritten_an_rms_norm_is_a_kernel_out_of_place(
    tmp_path: Path,
) -> None:
    model = model_as("timm_vit", FX)
    result = ns.swap(model, to="rmsnorm")
    kernels = ["normswap.rms_norm.default"] + ["normswap.add_rms_norm_.default"] * 4
    assert _calls(result.model.to_inference()) == kernels
    assert "1 norms run as rms_norm in inference" in result.notes
    assert _calls(result.model.to_torch()) == ["aten.rms_norm.default"] * 5
    assert ns.validate(model, result.model).passed
    ns.save(result.model, tmp_path / "kernels.pt2")
    loaded = ns.load(tmp_path / "kernels.pt2")
    assert list(loaded.graph.kernels().values()) == ["rms_norm"] + ["add_rms_norm_"] * 4


@pytest.mark.parametrize(
    "family", ["open_clip_clip", "timm_rms_norm", "timm_swin_v2", "hf_aimv2", "hf_beit", "hf_bert"]
)
def test_the_exact_contract_holds(family: str) -> None:
    model = model_as(family, FX)
    result = ns.swap(model, to="fused")
    assert result.model.graph.kernels()
    report = ns.validate(model, result.model)
    assert report.passed, report.findings


def test_it_is_saved_loaded_exported_and_compiled(tmp_path: Path) -> None:
    model = model_as("timm_vit", FX)
    result = ns.swap(model, to="fused").model
    feeds = {s.name: np.array(model.examples[s.name]) for s in model.inputs}
    (wanted,) = model.run(feeds).values()
    inputs = [torch.from_numpy(a) for a in feeds.values()]

    ns.save(result, tmp_path / "kernels.pt2")
    loaded = ns.load(tmp_path / "kernels.pt2")
    assert list(loaded.graph.kernels().values()) == ["add_layer_norm_"] * 4
    assert [s.kind for s in ns.locate(loaded)] == ["layer_norm"] * 5  # seen as what they are
    assert {s.role for s in ns.locate(loaded)} == {s.role for s in ns.locate(model)}
    np.testing.assert_allclose(*loaded.run(feeds).values(), wanted, rtol=1e-5, atol=1e-5)

    ns.save(result, tmp_path / "standard.onnx")
    (got,) = ns.load(tmp_path / "standard.onnx").run(feeds).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)

    module = result.to_inference()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        np.testing.assert_allclose(compiled(*inputs).numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_a_target_that_is_no_torch_gets_standard_operators() -> None:
    result = ns.swap(model_as("spelled_vit", FX), ns.Fused(target="openvino"))
    assert len(result.done) == 5
    assert not result.model.graph.kernels()


def test_a_folded_or_swapped_model_forgets_its_kernels() -> None:
    """A norm that is no longer there runs as nothing."""
    fused = ns.swap(model_as("timm_vit", FX), to="fused").model
    data = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    swapped = ns.swap(fused, to="batchnorm", data=data).model
    assert not swapped.graph.kernels()


def test_tuning_takes_only_kernels_that_win(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Measured(1.0, 1.0, 1.0, 0.5)
    slow, fast = Measured(1.5, 1.4, 1.6, 0.5), Measured(0.5, 0.4, 0.6, 0.5)

    def measure(kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Measured]:
        return {torch_norms.ORIGINAL: original, kernel: slow if "add" in kernel else fast}

    monkeypatch.setattr(torch_norms, "measure_kernel", measure)
    result = ns.swap(model_as("timm_vit", FX), ns.Fused(tune=True))
    # Without the sum only the last norm reads what nobody else does.
    assert result.notes[0] == "1 norms run as layer_norm_ in inference"
    assert any("torch's operators; time beside" in note for note in result.notes)


def test_measuring_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kernel in ("add_layer_norm_", "rms_norm"):
        measured = torch_norms.measure_kernel(kernel, (2, 5, 64), torch.float32)
        assert measured[kernel].is_exact
        assert 0 < measured[kernel].low <= measured[kernel].high < 1e3
        assert torch_norms.measure_kernel(kernel, (2, 5, 64), torch.float32) == measured


def test_on_a_graph_module() -> None:
    model = model_as("timm_vit", FX)
    module = apply_for_inference(Fused(), model.to_torch())
    assert "normswap.add_layer_norm_.default" in _calls(module)


def test_a_damaged_measurement_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch_norms.measure_kernel("layer_norm_", (2, 64), torch.float32)
    (file,) = (tmp_path / "normswap" / "tuning").iterdir()
    file.write_text(file.read_text().replace('"ratio"', '"other"'))
    assert torch_norms.measure_kernel("layer_norm_", (2, 64), torch.float32)["layer_norm_"].is_exact
