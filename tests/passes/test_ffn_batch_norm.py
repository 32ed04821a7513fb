"""A BatchNorm in every FFN changes nothing at evaluation, whatever the FFN is made of."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import normswap as ns
from normswap.passes import InsertFfnBatchNorm
from normswap.passes.base import PassResult
from tests.zoo.exports import FX, model_as
from tests.zoo.models import build  # noqa: F401 -- makes torchvision importable for timm

_SITES = "role=*_mlp"
_PLAIN = {"before": ("fc1_bn",), "after": ("fc1_act_bn",)}
_GATED = {"before": ("fc1_g_bn", "fc1_x_bn"), "after": ("fc1_x_act_bn",)}
# the model, the form, its FFNs, and the BatchNorms that each of them gets
_CASES: dict[str, tuple[str, str, int, dict[str, tuple[str, ...]]]] = {
    "plain": ("timm_dinov2_reg", FX, 2, _PLAIN),
    "plain-onnx": ("timm_dinov2_reg", "torchscript-14", 2, _PLAIN),
    "swiglu": ("timm_eva02", FX, 2, _GATED),
    "packed-glu": ("GluMlp", FX, 2, _PLAIN),
    "packed-swiglu": ("SwiGLUPacked", FX, 2, _PLAIN),
    "post-norm": ("hf_bert", FX, 2, {"before": ("dense_bn",), "after": ("dense_act_bn",)}),
    "res-post-norm": ("timm_res_post_norm", FX, 2, _PLAIN),
    "convnext": ("timm_convnext", FX, 4, _PLAIN),
    "convnext-conv": ("timm_convnext_conv_mlp", FX, 4, _PLAIN),
}
cases = pytest.mark.parametrize(("position", "case"), [(p, c) for p in _PLAIN for c in _CASES])


@functools.lru_cache
def _packed(layer: str) -> ns.Model:
    """A ViT whose FFNs compute both halves of a gated unit in one linear layer."""
    from timm import layers
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    options: dict[str, Any] = {"mlp_layer": getattr(layers, layer), "num_classes": 10}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = VisionTransformer(**sizes, **options).eval()
    return ns.load(module, example_inputs={"x": torch.randn(2, 3, 32, 32)})


def _model(case: str) -> ns.Model:
    name, form, *_ = _CASES[case]
    return model_as(name, form) if name[0].islower() else _packed(name)


def _feeds(model: ns.Model, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for spec in model.inputs:
        shape = (count, *model.examples[spec.name].shape[1:])
        integers = spec.dtype.kind == "i"
        values = random.integers(1, 48, shape) if integers else random.standard_normal(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    if "attention_mask" in feeds:
        feeds["attention_mask"] = np.ones_like(feeds["attention_mask"])
    return feeds


def _inserted(case: str, position: str) -> tuple[ns.Model, PassResult]:
    model = _model(case)
    data = ns.load_data(_feeds(model, 12), model)
    return model, InsertFfnBatchNorm(data=data, sites=_SITES, position=position)(model)


def _batch_norms(model: ns.Model) -> list[str]:
    return [site.name for site in ns.locate(model) if site.kind == "batch_norm"]


@cases
def test_every_ffn_gets_its_batch_norms(position: str, case: str) -> None:
    _, _, count, names = _CASES[case]
    model, result = _inserted(case, position)
    assert (len(result.done), result.skipped) == (count, [])
    assert [site.role[-4:] for site in result.done] == count * ["_mlp"]
    found = _batch_norms(result.model)
    assert sorted(name.rpartition(".")[2] for name in found) == sorted(count * names[position])
    assert len(set(found)) == len(found)
    assert not _batch_norms(model)


@cases
def test_nothing_changes_at_evaluation(position: str, case: str) -> None:
    """The statistics are float32, so in float64 they cancel to its rounding."""
    model, result = _inserted(case, position)
    feeds = _feeds(model, 3, seed=1)
    outputs = (m.run(feeds, np.float64) for m in (model, result.model))
    for expected, got in zip(*(list(o.values()) for o in outputs), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("position", _PLAIN)
@pytest.mark.parametrize("case", ["plain", "swiglu", "packed-swiglu", "convnext-conv"])
def test_its_statistics_are_those_of_what_it_normalises(position: str, case: str) -> None:
    """In training it continues with what the data had: mean 0 and variance 1 behind it."""
    model, result = _inserted(case, position)
    graph, feeds = result.model.graph, _feeds(model, 12)
    sites = [site for site in ns.locate(result.model) if site.kind == "batch_norm"]
    inputs = {graph.value(name): array for name, array in feeds.items()}
    arrays = graph.evaluate([graph.value(site.input) for site in sites], inputs)
    for site, array in zip(sites, arrays, strict=True):
        rows = np.moveaxis(array, site.axes[0], -1).reshape(-1, array.shape[site.axes[0]])
        rows = rows.astype(np.float64)
        np.testing.assert_allclose(site.mean, rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(site.variance, rows.var(0), rtol=1e-4, atol=1e-7)


def test_with_a_swap_it_is_fitted_to_the_swapped_model() -> None:
    model = _model("plain")
    feeds = _feeds(model, 12)
    result = ns.swap(model, ns.BatchNorm(ffn_batchnorm=True, ffn_position="after"), data=feeds)
    plain = ns.swap(model, to="batchnorm", data=feeds)
    names = {f"blocks.{i}.mlp.fc1_act_bn" for i in (0, 1)}
    assert set(_batch_norms(result.model)) - set(_batch_norms(plain.model)) == names
    test = _feeds(model, 3, seed=1)
    (got,), (expected,) = (m.run(test).values() for m in (result.model, plain.model))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    site = next(s for s in ns.locate(result.model) if s.name == "blocks.1.mlp.fc1_act_bn")
    graph = result.model.graph
    (x,) = graph.evaluate([graph.value(site.input)], {graph.value("x"): feeds["x"]})
    np.testing.assert_allclose(site.mean, x.mean((0, 1)), atol=1e-5)


def test_what_is_no_ffn_of_two_linear_layers_is_told() -> None:
    """ConvNeXt V2 normalises the whole response between them."""
    model = model_as("timm_convnext_v2", FX)
    data = ns.load_data(_feeds(model, 8), model)
    result = InsertFfnBatchNorm(data=data, sites=_SITES)(model)
    done = {site.name for site in result.done}
    told = {site.name: reason for site, reason in result.skipped}
    assert len(done) + len(told) == 4
    assert set(told.values()) <= {"its FFN is not two stages of linear layers"}


def test_an_unknown_position_is_refused() -> None:
    model = _model("plain")
    data = ns.load_data(_feeds(model, 8), model)
    with pytest.raises(ns.NormswapError, match="'between' is none of before, after"):
        InsertFfnBatchNorm(data=data, position="between")
    with pytest.raises(ns.NormswapError, match="--ffn-position: 'between'"):
        ns.swap(model, ns.BatchNorm(ffn_position="between"), data=data)


# ---- folding: what was inserted goes into the linear layers -------------------------------------


@cases
def test_folding_leaves_nothing_of_it(position: str, case: str) -> None:
    model, result = _inserted(case, position)
    folded = ns.fold(result.model)
    assert folded.skipped == []
    assert not _batch_norms(folded.model)
    assert len(folded.model.graph.nodes) <= len(model.graph.nodes)
    feeds = _feeds(model, 3, seed=1)
    outputs = (m.run(feeds, np.float64) for m in (model, folded.model))
    for expected, got in zip(*(list(o.values()) for o in outputs), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
