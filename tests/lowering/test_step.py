"""Norms of a torch graph that run as kernels in inference."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import normswap as ns
from normswap.lowering import kernels_of, lower
from normswap.passes import Fold, Fused, RmsNorm
from normswap.pipelines import apply_for_inference
from tests.effort import ALL
from tests.zoo.exports import FX, model_as

KERNELS = ns.Lowering(kernels=True)


def _calls(module: torch.fx.GraphModule) -> list[str]:
    return [
        str(n.target) for n in module.graph.nodes if "norm" in str(n.target) and n.op != "get_attr"
    ]


def test_a_pre_norm_vit_works_in_place_but_for_its_first_norm() -> None:
    model = model_as("timm_vit", FX)
    result = ns.swap(model, to="fused", lowering=KERNELS)
    assert [s.name for s in result.done] == [s.name for s in ns.locate(model)[1:]]
    ((first, reason),) = result.skipped
    assert first.role == "pre_attention"
    assert reason.endswith("what it would overwrite in place is still needed")
    assert result.notes == ["4 norms run as add_layer_norm_ in inference"]
    in_place = ["normswap.add_layer_norm_.default"] * 4
    assert _calls(result.model.to_inference()) == ["aten.layer_norm.default", *in_place]
    assert _calls(result.model.to_torch()) == ["aten.layer_norm.default"] * 5  # to be trained
    assert not kernels_of(model.graph)


@pytest.mark.parametrize("to", ["fused", "rmsnorm"])
def test_a_file_needs_normswap_only_where_kernels_were_asked_for(to: str, tmp_path: Path) -> None:
    model = model_as("spelled_vit", FX)
    ns.save(ns.swap(model, to=to).model, tmp_path / "plain.pt2")
    ns.save(ns.swap(model, to=to, lowering=KERNELS).model, tmp_path / "kernels.pt2")
    for file, expected in (("plain.pt2", False), ("kernels.pt2", True)):
        with zipfile.ZipFile(tmp_path / file) as archive:
            (graph,) = (name for name in archive.namelist() if name.endswith("model.json"))
            assert (b"torch.ops.normswap" in archive.read(graph)) is expected


def test_a_pass_alone_chooses_no_kernels() -> None:
    model = model_as("timm_vit", FX)
    alone = Fused()(model)
    assert not alone.modified
    lowered = lower(alone, KERNELS)
    assert lowered.modified
    assert len(kernels_of(lowered.model.graph)) == 4
    swapped = RmsNorm()(model)
    assert len(kernels_of(lower(swapped, KERNELS).model.graph)) == 5
    assert not kernels_of(swapped.model.graph)  # a step leaves the result that it is given alone


def test_what_is_no_swap_to_an_operator_of_norms_stays_as_it_is() -> None:
    for name, form in (("timm_vit", FX), ("timm_vit", "torchscript-14")):
        result = Fold()(model_as(name, form))
        assert lower(result, ns.Lowering()) is result
    result = Fused()(model_as("timm_vit", "torchscript-14"))
    assert lower(result, ns.Lowering(tune=True)) is result
    assert lower(Fused()(model_as("timm_vit", FX)), ns.Lowering(target="generic")).skipped


def test_kernels_are_for_torch_models_alone() -> None:
    with pytest.raises(ns.NormswapError, match="'rmsnorm' does not depend on target"):
        ns.swap(model_as("timm_vit", FX), to="rmsnorm", lowering=ns.Lowering(target="generic"))
    with pytest.raises(ns.NormswapError, match="leave --target out"):
        ns.Lowering(target="openvino", kernels=True)
    with pytest.raises(ns.NormswapError, match="for torch models"):
        ns.swap(model_as("timm_vit", "torchscript-14"), to="fused", lowering=KERNELS)


def test_where_nothing_can_be_overwritten_an_rms_norm_is_a_kernel_out_of_place(
    tmp_path: Path,
) -> None:
    model = model_as("timm_vit", FX)
    result = ns.swap(model, to="rmsnorm", lowering=KERNELS)
    kernels = ["normswap.rms_norm.default"] + ["normswap.add_rms_norm_.default"] * 4
    assert _calls(result.model.to_inference()) == kernels
    assert "1 norms run as rms_norm in inference" in result.notes
    assert _calls(result.model.to_torch()) == ["aten.rms_norm.default"] * 5
    assert ns.validate(model, result.model).passed
    ns.save(result.model, tmp_path / "kernels.pt2")
    loaded = ns.load(tmp_path / "kernels.pt2")
    assert list(kernels_of(loaded.graph).values()) == ["rms_norm"] + ["add_rms_norm_"] * 4


@pytest.mark.parametrize(
    "family",
    ["open_clip_clip", "timm_rms_norm", "hf_bert"]
    + (["timm_swin_v2", "hf_aimv2", "hf_beit"] if ALL else []),
)
def test_the_exact_contract_holds(family: str) -> None:
    model = model_as(family, FX)
    result = ns.swap(model, to="fused", lowering=KERNELS)
    assert kernels_of(result.model.graph)
    report = ns.validate(model, result.model)
    assert report.passed, report.findings


def test_it_is_saved_loaded_exported_and_compiled(tmp_path: Path) -> None:
    model = model_as("timm_vit", FX)
    result = ns.swap(model, to="fused", lowering=KERNELS).model
    feeds = {s.name: np.array(model.examples[s.name]) for s in model.inputs}
    (wanted,) = model.run(feeds).values()
    inputs = [torch.from_numpy(a) for a in feeds.values()]

    ns.save(result, tmp_path / "kernels.pt2")
    loaded = ns.load(tmp_path / "kernels.pt2")
    assert list(kernels_of(loaded.graph).values()) == ["add_layer_norm_"] * 4
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
    result = ns.swap(
        model_as("spelled_vit", FX), to="fused", lowering=ns.Lowering(target="openvino")
    )
    assert len(result.done) == 5
    assert not kernels_of(result.model.graph)


def test_a_folded_or_swapped_model_forgets_its_kernels() -> None:
    """A norm that is no longer there runs as nothing."""
    fused = ns.swap(model_as("timm_vit", FX), to="fused", lowering=KERNELS).model
    data = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    swapped = ns.swap(fused, to="batchnorm", data=data).model
    assert not kernels_of(swapped.graph)


def test_on_a_graph_module() -> None:
    model = model_as("timm_vit", FX)
    module = apply_for_inference(Fused(), model.to_torch())
    assert "normswap.add_layer_norm_.default" in _calls(module)
