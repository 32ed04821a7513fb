"""Norms whose output is read inside the branches of an If."""

from __future__ import annotations

import numpy as np

import normswap as ns
from normswap.io.load import model_from_onnx
from normswap.model import Model
from tests.graph.onnx_text import onnx_graph

C = 6
SPELLED = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) "
    "e = Add(v, eps) s = Sqrt(e) n = Div(d, s) "
)
BRANCHES = (
    "y = If (flag) <then_branch = t () => (float[B,4,6] p) { p = Neg(n) }, "
    "else_branch = f () => (float[B,4,6] r) { r = Add(n, n) }>"
)


def _model() -> Model:
    text = f"(float[B,4,{C}] x, bool flag) => (float[B,4,{C}] y) {{ {SPELLED} {BRANCHES} }}"
    return model_from_onnx(onnx_graph(text, {"eps": np.float32(1e-5)}, 14).model, "branches")


def test_fused_reaches_into_the_branches() -> None:
    model = _model()
    result = ns.swap(model, to="fused")
    assert len(result.done) == 1
    assert [node.op for node in result.model.graph.nodes] == ["LayerNormalization", "If"]
    x = np.random.default_rng(0).standard_normal((2, 4, C)).astype(np.float32)
    for flag in (True, False):
        feeds = {"x": x, "flag": np.array(flag)}
        for dtype in (None, np.float64):
            got, expected = result.model.run(feeds, dtype)["y"], model.run(feeds, dtype)["y"]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_norm_that_branches_read_is_not_folded() -> None:
    model = _model()
    x = np.random.default_rng(0).standard_normal((16, 4, C)).astype(np.float32)
    swapped = ns.swap(model, to="batchnorm", data={"x": x}, sites="*").model
    result = ns.fold(swapped)
    assert not result.modified
    ((_, reason),) = result.skipped
    assert "If 'y' reads it" in reason
