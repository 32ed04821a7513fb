"""One pass inside other pipelines: among onnx_ir's own, and on a bare GraphModule."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

import normswap as ns
from normswap.passes import BatchNorm, Fold, Fused
from normswap.pipelines import OnnxPass, apply_to_module
from tests.zoo.exports import FX, model_as, zoo_model


def test_among_onnx_ir_passes() -> None:
    original = model_as("timm_vit", "torchscript-14")
    before = original.to_onnx_ir()
    fused = OnnxPass(Fused())
    pipeline = ir.passes.Sequential(
        RemoveUnusedNodesPass(), fused, CommonSubexpressionEliminationPass()
    )
    result = pipeline(before)
    assert result.modified
    assert len(fused.last.done) == 5
    operators = [node.op_type for node in result.model.graph]
    assert operators.count("LayerNormalization") == 5
    assert "ReduceMean" not in operators
    assert all(node.op_type != "LayerNormalization" for node in original.to_onnx_ir().graph)
    assert ns.validate(original, ns.load(result.model)).passed


def test_on_a_graph_module() -> None:
    zoo = zoo_model("timm_vit")
    x = zoo.inputs["x"]
    program = torch.export.export(
        zoo.module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    module = program.module(check_guards=False)
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    data = ns.load_data(images, model_as("timm_vit", FX))
    swapped = apply_to_module(BatchNorm(data=data), module)
    folded = apply_to_module(Fold(), swapped)
    norms = [m for m in swapped.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == 5
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    batch = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(folded(batch), swapped(batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module(batch), zoo.module(batch))
