"""A norm and the residual sum that it reads become one operator of ONNX Runtime's."""

from __future__ import annotations

import numpy as np

import normswap as ns
from tests.zoo.exports import FX, model_as


def test_norms_of_sums_become_the_operator_and_are_located_again() -> None:
    model = model_as("timm_vit", "torchscript-14")
    result = ns.swap(model, to="fused-residual")
    skipped = {site.name: reason for site, reason in result.skipped}
    assert result.done
    assert all("it reads no sum of two values" in reason for reason in skipped.values())
    operators = [node.op for node in result.model.graph.nodes]
    assert operators.count("SkipLayerNormalization") == len(result.done)
    assert len(result.model.sites) == len(model.sites)
    for old, new in zip(model.sites, result.model.sites, strict=True):
        assert (new.kind, new.role) == (old.kind, old.role)
        np.testing.assert_allclose(new.weight, old.weight, rtol=1e-6)
        assert bool(new.fixed) == (old.name not in skipped)
    report = ns.validate(model, result.model)
    assert report.passed, report.findings


def test_torch_has_no_such_operator() -> None:
    result = ns.swap(model_as("timm_vit", FX), to="fused-residual")
    assert not result.done
    assert all("export the model to ONNX" in reason for _, reason in result.skipped)
