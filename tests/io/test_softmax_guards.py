"""Guards behind a softmax go where no row can be masked as a whole, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.graph.onnx.evaluate import runtime_session
from normswap.io.onnx import remove_softmax_guards
from normswap.io.save import without_softmax_guards

_INF = float("inf")
_GUARD = "p = Softmax<axis=-1>(s) t = IsNaN(p) y = Where(t, zero, p)"


def _model(body: str, mask: np.ndarray | None = None, guard: str = _GUARD) -> ir.Model:
    """softmax(q k + mask), the logits written by ``body``, with a guard."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[2, 3, 4] q, float[2, 3, 3] given, bool[3, 3] allowed) => (float[2, 3, 3] out)
        <float zero = {{0}}, float two = {{2}}, int64[3] sizes = {{2, 3, 3}}> {{
        k = Transpose<perm=[0,2,1]>(q) a = MatMul(q, k) {body} {guard} out = Mul(y, two)
    }}"""
    proto = onnx.parser.parse_model(text)
    if mask is not None:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    scalar = onnx.numpy_helper.from_array(np.float32(-_INF), "closed")
    proto.graph.initializer.append(scalar)
    return ir.serde.deserialize_model(proto)


def _run(model: ir.Model, q: np.ndarray) -> np.ndarray:
    feeds = {"q": q, "given": np.zeros((2, 3, 3), np.float32), "allowed": np.ones((3, 3), bool)}
    found: np.ndarray = runtime_session(ir.serde.serialize_model(model)).run(None, feeds)[0]
    return found


_CAUSAL = np.where(np.tri(3, dtype=bool), 0, -_INF).astype(np.float32)
_ROW_CLOSED = np.array([[0, 0, 0], [-_INF] * 3, [0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ("body", "mask"),
    [
        ("s = Identity(a)", None),
        ("b = Div(a, two) s = Mul(b, two)", None),
        ("s = Add(a, mask)", _CAUSAL),
        ("s = Add(mask, a)", np.zeros((3, 3), np.float32)),
        ("m = Where(mask, zero, closed) s = Add(a, m)", np.tri(3, dtype=bool)),
        ("e = Expand(mask, sizes) m = Where(e, zero, closed) s = Add(a, m)", np.ones((1, 3), bool)),
    ],
)
def test_a_guard_goes_that_no_row_needs(body: str, mask: np.ndarray | None) -> None:
    before, after = _model(body, mask), _model(body, mask)
    guards = remove_softmax_guards(after)
    assert (guards.removed, guards.left) == (1, {})
    assert not {"IsNaN"} & {node.op_type for node in after.graph}
    q = 5 * np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(_run(after, q), _run(before, q))


@pytest.mark.parametrize(
    ("body", "mask", "reason"),
    [
        ("s = Add(a, mask)", _ROW_CLOSED, "a row of its mask is closed as a whole"),
        ("s = Add(a, mask)", np.array([-_INF], np.float32), "closed as a whole"),
        ("s = Sub(a, mask)", _CAUSAL, "a mask is multiplied or subtracted"),
        ("b = Add(a, mask) s = Mul(b, two)", _CAUSAL, "multiplied"),
        ("b = Add(a, mask) s = Add(b, mask)", _CAUSAL, "several masks"),
        ("s = Add(a, given)", None, "which a caller gives"),
        ("m = Where(allowed, zero, closed) s = Add(a, m)", None, "from the model's inputs"),
        ("m = Where(mask, zero, closed) s = Add(a, m)", np.zeros((3, 1), bool), "as a whole"),
        ("b = Div(two, a) s = Identity(b)", None, "from the model's inputs"),
        ("b = Log(a) s = Identity(b)", None, "from the model's inputs"),
        ("s = Add(a, mask)", np.full((3, 3), np.nan, np.float32), "which a caller gives"),
    ],
)
def test_a_guard_stays_that_a_row_may_need(body: str, mask: np.ndarray | None, reason: str) -> None:
    model = _model(body, mask)
    guards = remove_softmax_guards(model)
    assert guards.removed == 0
    ((why, count),) = guards.left.items()
    assert count == 1
    assert reason in why
    assert "IsNaN" in {node.op_type for node in model.graph}


def test_what_is_no_guard_stays() -> None:
    for guard in (
        _GUARD.replace("Where(t, zero, p)", "Where(t, two, p)"),
        _GUARD.replace("IsNaN(p)", "IsNaN(s)"),
        _GUARD.replace("Softmax", "LogSoftmax"),
    ):
        model = _model("s = Identity(a)", None, guard)
        assert remove_softmax_guards(model) == remove_softmax_guards(model)
        assert "IsNaN" in {node.op_type for node in model.graph}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(5, 5).tril().bool())
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


def test_torch_models_are_written_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    model = ns.load(_Attention().eval(), example_inputs=(x,))
    ns.save(model, tmp_path / "attention.onnx")
    loaded = ns.load(tmp_path / "attention.onnx")
    assert "IsNaN" not in [node.op for node in loaded.graph.nodes]
    assert "Softmax" in [node.op for node in loaded.graph.nodes]
    assert ns.validate(model, loaded, data={"x": x.numpy()}).passed
    assert without_softmax_guards(loaded) == (loaded, [])
