"""The exact contract in half precision, and on an original whose constants are hostile."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import normswap as ns
from normswap.io.save_torch import onnx_from_torch
from tests.zoo.exports import zoo_model

# ONNX Runtime has no bfloat16 convolution on the CPU, so that one is torch's alone.
CASES = [("fx", torch.float16), ("fx", torch.bfloat16), ("onnx", torch.float16)]


@pytest.fixture(scope="module", params=CASES, ids=[f"{kind}-{dtype}" for kind, dtype in CASES])
def half(request: pytest.FixtureRequest) -> ns.Model:
    kind, dtype = request.param
    zoo = zoo_model("spelled_vit")
    module = copy.deepcopy(zoo.module).to(dtype)
    model = ns.load(module, example_inputs={"x": zoo.inputs["x"].to(dtype)})
    return model if kind == "fx" else ns.load(onnx_from_torch(model))


def _images(model: ns.Model) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.standard_normal((16, 3, 32, 32)).astype(model.inputs[0].dtype)


def _exact(original: ns.Model, candidate: ns.Model) -> None:
    report = ns.validate(original, candidate)
    assert report.passed, report.findings


def test_fused_is_exact(half: ns.Model) -> None:
    result = ns.swap(half, to="fused")
    assert len(result.done) == 5
    _exact(half, result.model)


def test_fold_is_exact(half: ns.Model) -> None:
    swapped = ns.swap(half, ns.BatchNorm(ffn_batchnorm=True), data=_images(half)).model
    folded = ns.fold(swapped)
    assert len(folded.done) == 7
    _exact(swapped, folded.model)


def test_an_outlier_channel_and_a_tiny_one_fold_exactly() -> None:
    zoo = zoo_model("timm_vit")
    module = copy.deepcopy(zoo.module)
    with torch.no_grad():
        module.pos_embed[..., 0] += 10  # type: ignore[operator, index]
        module.pos_embed[..., 1] *= 1e-4  # type: ignore[operator, index]
        module.norm.weight[2] = 0  # type: ignore[union-attr, operator, index]
        module.norm.weight[3] *= -50  # type: ignore[union-attr, operator, index]
    model = ns.load(module, example_inputs={"x": zoo.inputs["x"]})
    for fit in ("copy", "moments"):
        swapped = ns.swap(model, ns.BatchNorm(fit=fit), data=_images(model)).model
        folded = ns.fold(swapped)
        assert len(folded.done) == 5
        _exact(swapped, folded.model)


def test_a_fold_that_cancels_large_means_says_so() -> None:
    zoo = zoo_model("timm_vit")
    module = copy.deepcopy(zoo.module)
    with torch.no_grad():
        module.pos_embed[..., 0] += 2e3  # type: ignore[operator, index]
    model = ns.load(module, example_inputs={"x": zoo.inputs["x"]})
    swapped = ns.swap(model, to="batchnorm", data=_images(model)).model
    folded = ns.fold(swapped)
    assert len(folded.done) == 5
    assert any("times its deviation" in note for note in folded.notes)
