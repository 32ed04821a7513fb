"""Every architecture's LayerNorms, as RMSNorms and with weight and bias in their readers.

By default some models are taken in one form each, with NORMSWAP_ZOO=all every one in several.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import normswap as ns
from normswap.lowering import lower
from normswap.passes.fold_affine import FoldAffine
from normswap.passes.fused import Fused
from normswap.passes.rms_norm import RmsNorm
from tests.effort import ALL
from tests.passes.fold_checks import EXACT, same
from tests.passes.norm_checks import check_exact, operators, vectors
from tests.passes.test_fold_zoo import in_double
from tests.zoo.exports import FX, NotExportable, model_as, zoo_model
from tests.zoo.models import BUILDERS, FAMILIES, build

TORCHSCRIPT, DYNAMO = "torchscript-14", "dynamo-18"
FEW = (
    *("timm_vit", "open_clip_clip", "hf_vit", "timm_res_post_norm", "timm_qk_norm"),
    *("timm_dinov2_reg", "timm_swin", "hf_bert", "torch_conv_stem"),
)
CASES = [(name, form) for name in FAMILIES for form in (FX, TORCHSCRIPT, DYNAMO)]
if not ALL:
    CASES = [*((name, FX) for name in FEW), ("timm_vit", TORCHSCRIPT), ("hf_clip", TORCHSCRIPT)]
PRE_NORM = (*BUILDERS, "timm_dinov2_reg", "timm_deit_distilled", "hf_siglip", "timm_beit")
DOUBLE = [("timm_dinov2_reg", FX), ("timm_vit", TORCHSCRIPT)]
# ONNX stores epsilon in float32: the decimal number that it stands for is what is written.
BOUNDS = {FX: EXACT, TORCHSCRIPT: 1e-9}

# How many LayerNorms stay, and why. No other stays of any model.
STAY: dict[str, tuple[int, str]] = {
    "timm_res_post_norm": (1, "read elsewhere"),  # the last norm: its stream is post-norm
    "timm_look_alike": (1, "read elsewhere|channels whole"),  # by norms that are none
    "timm_siglip": (1, "read elsewhere"),  # by the head, as attention pooling's sum
    "hf_siglip": (1, "read elsewhere"),
    "timm_eva02": (4, "channels whole|computes it"),  # inside attentions and gated MLPs
    "timm_swin": (5, "read elsewhere|channels whole"),  # patch merging norms four tokens as one
    "hf_swin": (5, "read elsewhere|channels whole"),
    "timm_swin_v2": (1, "read elsewhere"),  # the last norm: its stream is post-norm
    "hf_bert": (4, "read elsewhere"),
    "torch_post_norm": (4, "read elsewhere"),
    "open_clip_custom_blocks": (18, "norms write to its stream|channels whole|computes it"),
    "timm_convnext": (8, "groups of channels|read elsewhere"),
    "timm_convnext_conv_mlp": (8, "groups of channels|read elsewhere"),
    "timm_convnext_v2": (8, "groups of channels|read elsewhere"),
    "hf_convnext": (8, "groups of channels|read elsewhere"),
}
STACKED = (9, "aten.stack")  # two attentions' results, which torch stacks and sums up
OTHER_KINDS = {"timm_rms_norm": 5, "timm_convnext_rms": 9, "hf_aimv2": 11, "torch_conv_stem": 3}


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES], scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, ns.Model]:
    name, form = request.param
    try:
        return name, model_as(name, form)
    except NotExportable:
        return name, model_as(name, DYNAMO)


def _feeds(name: str, model: ns.Model) -> dict[str, np.ndarray]:
    arrays = [tensor.numpy() for tensor in zoo_model(name).inputs.values()]
    return {s.name: a.astype(s.dtype) for s, a in zip(model.inputs, arrays, strict=True)}


def test_layer_norms_become_rms_norms(case: tuple[str, ns.Model]) -> None:
    name, model = case
    result = lower(RmsNorm()(model), ns.Lowering(kernels=model.kind == "fx"))
    count, reason = STAY.get(name, (0, ""))
    if name == "timm_parallel_things" and model.kind == "fx":
        count, reason = STACKED
    stay = [why for site, why in result.skipped if site.kind == "layer_norm"]
    assert len(stay) == count, stay
    assert len(result.skipped) == count + OTHER_KINDS.get(name, 0)
    assert all(re.search(reason, why) for why in stay), stay
    assert result.modified == bool(result.done)
    if result.done:
        _no_more_operators(model, result)
        _the_same_function(name, model, result.model)


def _the_same_function(name: str, model: ns.Model, rewritten: ns.Model) -> None:
    if ALL or name in PRE_NORM:
        report = ns.validate(model, rewritten)
        assert report.passed, report
    else:  # weights that are rounded once more
        feeds, bound = _feeds(name, model), 5e-3 if "mixed" in name else 1e-6
        same(model.run(feeds, np.float64), rewritten, feeds, bound)


def _no_more_operators(model: ns.Model, result: ns.passes.base.PassResult) -> None:
    """As many as with norms that are one operator each: only a beta that no reader takes is one
    Add more, and a mean that is subtracted two operators."""
    fused, swapped = (Fused()(m).model.graph for m in (model, result.model))
    count = len(result.done)
    kept = sum("keeps its weight and bias" in note for note in result.notes)
    means = sum("a mean is subtracted" in note for note in result.notes)
    before, after = operators(fused), operators(swapped)
    assert before["LayerNormalization"] - after["LayerNormalization"] == count
    assert after["RMSNormalization"] - before["RMSNormalization"] == count
    for op, more in (("ReduceMean", means), ("Sub", means), ("Mul", 0), ("Div", 0)):
        assert after[op] <= before[op] + more, op
    assert vectors(swapped)["Add"] <= vectors(fused)["Add"] + kept
    assert vectors(swapped)["Mul"] <= vectors(fused)["Mul"]
    sites = [site for site in ns.locate(result.model) if site.kind == "rms_norm"]
    weighted = [s for s in sites if s.weight is not None and np.any(s.weight != 1)]
    assert len(weighted) <= kept


def test_weights_and_biases_fold(case: tuple[str, ns.Model]) -> None:
    name, model = case
    result = FoldAffine()(model)
    sites = {site.name: site for site in ns.locate(result.model)}
    assert len(sites) == len(ns.locate(model))
    for site in result.done:
        folded = sites[site.name]
        assert (folded.kind, folded.spelling) == (site.kind, "op")
        assert folded.weight is None or np.all(folded.weight == 1)
        assert folded.bias is None
    if name in BUILDERS:  # all but a norm that is the stream
        assert {site.role for site, _ in result.skipped} <= {"embedding"}
    if result.done:
        _the_same_function(name, model, result.model)


@pytest.mark.parametrize(("name", "kind"), DOUBLE)
def test_in_float64_nothing_is_lost(name: str, kind: str) -> None:
    if kind == FX:
        zoo = build(name)
        zoo.module.double()
        inputs = {k: t.double() if t.is_floating_point() else t for k, t in zoo.inputs.items()}
        dynamic = {key: {0: "batch"} for key in inputs}
        model = ns.load(zoo.module, example_inputs=inputs, dynamic_axes=dynamic)
    else:
        model = in_double(model_as(name, kind))
    for rewrite in (RmsNorm(), FoldAffine()):
        result = check_exact(model, rewrite, _feeds(name, model), BOUNDS[kind])
        assert result.done
