"""What the exact contract says of an original that is far from its own float64 evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import normswap as ns
from normswap.graph.onnx import float64_ops
from tests.graph.onnx_text import onnx_graph

TEXT = (
    "(float[B,5,8] x) => (float[B,5,4] y) "
    "{ h = MatMul(x, w) s = Softmax<axis = -1>(h) y = Add(s, b) }"
)


def _model(path: Any, bias: float = 0.0) -> ns.Model:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((8, 4)).astype(np.float32),
        "b": (rng.standard_normal(4) + bias).astype(np.float32),
    }
    ir.save(onnx_graph(TEXT, constants, opset=13).model, path)
    return ns.load(path)


def test_nothing_is_proven_against_an_original_that_is_far_from_its_truth(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx", bias=0.1)
    assert ns.validate(model, model).passed

    class Softmax(float64_ops._Op):
        def _run(self, x: Any, axis: int = -1) -> tuple[Any]:
            return (np.exp(x) / np.exp(x).sum(1, keepdims=True),)  # along another axis

    monkeypatch.setitem(float64_ops._OPS, "Softmax", Softmax)
    for candidate in (model, other):
        report = ns.validate(model, candidate)
        assert not report.passed
        found = [f for f in report.findings if f.kind == "reference"]
        assert found
        assert "nothing can be proven against it" in found[0].message


def test_rounding_is_no_finding(tmp_path: Any) -> None:
    """Large means in float32 leave few right digits, which is no fault of the evaluation."""
    text = (
        "(float[B,5,8] x) => (float[B,5,8] y) "
        "{ d = Mul(x, k) m = ReduceMean<axes = [-1]>(d) c = Sub(d, m) y = Mul(c, k) }"
    )
    path = tmp_path / "ill.onnx"
    ir.save(onnx_graph(text, {"k": np.full(8, 1e4, np.float32)}, opset=13).model, path)
    model = ns.load(path)
    report = ns.validate(model, model)
    assert not [f.message for f in report.findings if f.kind == "reference"]


def test_a_constant_that_gives_a_shape_is_no_rounding(tmp_path: Any) -> None:
    """1.6 times 5 is 8, and one ulp less is 7."""
    text = (
        "(float[B,4,5] x) => (float[B,4,8] y) "
        '{ r = Resize<mode = "nearest">(x, s) m = ReduceMean<axes = [-1]>(r) c = Sub(r, m) '
        "y = Mul(c, w) }"
    )
    constants = {"s": np.array([1, 1, 1.6], np.float32), "w": np.ones(8, np.float32)}
    path = tmp_path / "resized.onnx"
    ir.save(onnx_graph(text, constants, opset=10).model, path)
    model = ns.load(path)
    report = ns.validate(model, model)
    assert not [f.message for f in report.findings if f.kind in ("reference", "failed")]
