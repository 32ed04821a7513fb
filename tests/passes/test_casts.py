"""No map crosses a Cast into a dtype that does not hold what then lies there."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import normswap as ns
from tests.passes.fold_checks import fingerprint

C = 4
FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
NUMPY = {FLOAT: np.float32, HALF: np.float16, BRAIN: ml_dtypes.bfloat16}


def _model(
    nodes: Sequence[tuple[str, str, str] | tuple[str, str, str, int]],
    arrays: dict[str, tuple[np.ndarray, int]],
    x: int,
    y: int,
    opset: int = 18,
) -> ns.Model:
    """y from x [b, 4]. A node: operator, inputs, output, and the type of a Cast."""
    made = []
    for op, reads, writes, *to in nodes:
        extra = {"to": to[0]} if to else {"axis": -1} if op == "LayerNormalization" else {}
        made.append(helper.make_node(op, reads.split(), [writes], **extra))
    held = [numpy_helper.from_array(a.astype(NUMPY[t]), n) for n, (a, t) in arrays.items()]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", x, ["b", C])],
        [helper.make_tensor_value_info("y", y, ["b", C])],
        held,
    )
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return ns.load(ir.serde.deserialize_model(proto))


def _behind(number: float, back: bool, narrow: int = HALF, op: str = "Mul") -> ns.Model:
    """x @ w in ``narrow``, then s in float32; ``back``: what comes of it is cast back."""
    ends = [("Cast", "z", "n", narrow), ("Relu", "n", "y")] if back else [("Relu", "z", "y")]
    nodes = [("MatMul", "x w", "h"), ("Cast", "h", "c", FLOAT), (op, "c s", "z"), *ends]
    arrays = {"w": (np.eye(C) + 0.5, narrow), "s": (np.linspace(1, 2, C) * number, FLOAT)}
    return _model(nodes, arrays, narrow, narrow if back else FLOAT)


def _before(number: float, made: bool, narrow: int = HALF, op: str = "Mul") -> ns.Model:
    """s in float32, then a cast and a product in ``narrow``; ``made``: of what was that before."""
    begins = [("Relu", "x", "r"), ("Cast", "r", "h", FLOAT)] if made else [("Relu", "x", "h")]
    nodes = [*begins, (op, "h s", "z"), ("Cast", "z", "n", narrow), ("MatMul", "n w", "y")]
    arrays = {"w": (np.eye(C) + 0.5, narrow), "s": (np.linspace(1, 2, C) * number, FLOAT)}
    return _model(nodes, arrays, narrow if made else FLOAT, narrow)


@pytest.mark.parametrize("form", [_behind, _before])
@pytest.mark.parametrize("number", [1e-2, 0.9, 1.1, 30.0])
def test_a_scale_stays_where_float16_would_hold_new_values(form, number: float) -> None:  # type: ignore[no-untyped-def]
    model = form(number, False)
    before = fingerprint(model.graph)
    result = ns.fold(model)
    assert not result.modified
    ((_, why),) = result.skipped
    assert "is float16, which may not hold what float32 holds in" in why
    assert fingerprint(model.graph) == before


@pytest.mark.parametrize("form", [_behind, _before])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_it_goes_where_float16_held_them_before(form, op: str) -> None:  # type: ignore[no-untyped-def]
    model = form(3.0, True, op=op)
    result = ns.fold(model)
    assert len(result.done) == 1
    assert ns.validate(model, result.model).passed


@pytest.mark.parametrize(("scale", "size"), [(1e4, 100.0), (1e-2, 1e6), (64.0, 1e-8)])
def test_what_overflowed_and_vanished(scale: float, size: float) -> None:
    """The cases that this is about: finite before, infinite or 0 after."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(C, C, bias=False).half()
            self.linear.weight.data = torch.eye(C).half()
            self.scale = nn.Parameter(torch.linspace(1.0, 2.0, C) * scale)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype == torch.float16:
                return torch.relu(self.linear(x).float() * self.scale)
            return self.linear((torch.relu(x) * self.scale).half())

    x = torch.full((2, C), size, dtype=torch.float16 if scale > 1e3 else torch.float32)
    model = ns.load(Mixed(), example_inputs=(x,))
    (y,) = ns.fold(model).model.run(model.examples).values()
    np.testing.assert_allclose(y, np.linspace(1, 2, C) * scale * size * np.ones((2, 1)), rtol=0.1)


@pytest.mark.parametrize("form", [_behind, _before])
def test_bfloat16_has_the_exponents_but_not_the_digits(form) -> None:  # type: ignore[no-untyped-def]
    assert len(ns.fold(form(30.0, False, BRAIN)).done) == 1
    assert not ns.fold(form(30.0, False, BRAIN, "Add")).modified


def test_a_sum_that_is_held_does_not_vouch_for_its_parts() -> None:
    nodes = [
        ("MatMul", "x w", "h"), ("Cast", "h", "c", FLOAT), ("MatMul", "c v", "d"),
        ("Add", "c d", "a"), ("Mul", "a s", "z"), ("Cast", "z", "n", HALF), ("Relu", "n", "y"),
    ]  # fmt: skip
    arrays = {
        "w": (np.eye(C) + 0.5, HALF),
        "v": (np.eye(C) - 1.0, FLOAT),
        "s": (np.linspace(1, 2, C) * 100, FLOAT),
    }
    ((_, why), *_) = ns.fold(_model(nodes, arrays, HALF, HALF)).skipped
    assert "'h' is float16" in why


def test_a_norm_vouches_for_what_it_writes() -> None:
    nodes = [("LayerNormalization", "x g b", "n"), ("Cast", "n", "c", HALF), ("MatMul", "c w", "y")]
    arrays = {
        "g": (np.linspace(1, 2, C) * 100, FLOAT),
        "b": (np.linspace(1, 2, C), FLOAT),
        "w": (np.eye(C) + 0.5, HALF),
    }
    assert len(ns.fold_affine(_model(nodes, arrays, FLOAT, HALF)).done) == 1


def test_a_product_with_a_wider_constant_in_torch() -> None:
    """float16 times float32 is float32 there: without it its readers got float16."""

    class Promoted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(C, C).half(), nn.Linear(C, C)
            self.scale = nn.Parameter(torch.linspace(1.0, 2.0, C))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * self.scale)

    model = ns.load(Promoted(), example_inputs=(torch.randn(2, C).half(),))
    result = ns.fold(model)
    assert [why for _, why in result.skipped] == ["it reads float16 and gives float32"]
    result.model.run(model.examples)
