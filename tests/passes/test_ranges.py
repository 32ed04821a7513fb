"""Weights that the model's dtype cannot hold, and numbers that are not finite, are left alone."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import normswap as ns
from normswap.passes.algebra.rounding import OutOfRange, check_precision, rounded
from tests.passes.fold_checks import fingerprint

C = 4
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def _model(
    nodes: Sequence[onnx.NodeProto], arrays: dict[str, np.ndarray], dtype: np.dtype = HALVES[0]
) -> ns.Model:
    """y from x [b, 4]; ``arrays`` are cast to ``dtype``."""
    kind = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}[dtype.name]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, ["b", C])],
        [helper.make_tensor_value_info("y", kind, ["b", C])],
        [numpy_helper.from_array(np.asarray(a).astype(dtype), n) for n, a in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ns.load(ir.serde.deserialize_model(proto))


def _bn(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [x, "g", "b", "m", "v"], [y])


def _statistics(gamma: Sequence[float]) -> dict[str, np.ndarray]:
    zero, one = np.zeros(C), np.ones(C)
    return {"g": np.asarray(gamma), "b": zero + 0.5, "m": zero + 0.25, "v": one}


def _forms(weight: np.ndarray, gamma: Sequence[float]) -> dict[str, ns.Model]:
    """BatchNorms in front of a weight, behind it, and on a stream that has to change."""
    constants = {"w": weight, "w2": weight, **_statistics(gamma)}
    relu = helper.make_node("Relu", ["x"], ["r"])
    product = helper.make_node("MatMul", ["h", "w"], ["y"])
    second = helper.make_node("MatMul", ["x", "w2"], ["k"])
    behind = [second, _bn("k", "s"), helper.make_node("Relu", ["s"], ["y"])]
    forms = {"before": [relu, _bn("r", "h"), product], "behind": behind}
    used = {n: {i for node in nodes for i in node.input} for n, nodes in forms.items()}
    return {
        n: _model(nodes, {k: a for k, a in constants.items() if k in used[n]})
        for n, nodes in forms.items()
    }


@pytest.mark.parametrize("form", ["before", "behind"])
@pytest.mark.parametrize(
    ("weight", "gamma", "reason"),
    [(300.0, 400.0, "float16 ends at"), (1e-3, 1e-4, "loses precision"), (0.1, 5e-8, "precision")],
)
def test_a_fold_that_float16_cannot_hold_is_refused(
    form: str, weight: float, gamma: float, reason: str
) -> None:
    matrix = np.random.default_rng(0).uniform(0.5, 1.5, (C, C)) * weight
    for gammas in ([gamma] * C, [1.0, gamma, 1.0, 1.0]):
        model = _forms(matrix, gammas)[form]
        before = fingerprint(model.graph)
        result = ns.fold(model)
        assert not result.modified
        ((_, why),) = result.skipped
        assert reason in why
        assert "'w" in why
        assert fingerprint(model.graph) == before


def test_a_dead_channel_and_small_weights_that_were_there_fold() -> None:
    matrix = np.random.default_rng(0).uniform(0.5, 1.5, (C, C))
    matrix[1] *= 1e-6  # float16 holds few digits of these as they are
    for model in _forms(matrix, [1.0, 1.5, 0.0, -0.75]).values():
        assert len(ns.fold(model).done) == 1


@given(powers=st.lists(st.integers(-24, 15), min_size=C, max_size=C), small=st.integers(-14, 10))
def test_what_is_folded_in_float16_is_as_exact_as_float16(powers: list[int], small: int) -> None:
    gamma = np.array([2.0**p for p in powers]) * 1.25
    matrix = np.random.default_rng(1).uniform(0.75, 1.5, (C, C)) * 2.0**small
    model = _forms(matrix, gamma)["before"]
    result = ns.fold(model)
    weight = result.model.graph.constant(result.model.graph.value("w"))
    assert weight is not None
    assert np.isfinite(weight).all()
    if result.done:
        wanted = gamma.astype(np.float16).astype(float)[:, None] / np.sqrt(1 + 1e-5) * matrix
        error = np.abs(weight.astype(float) - wanted).sum(1) / np.abs(wanted).sum(1)
        assert error.max() < 2.0**-9  # of each channel
    else:
        product = np.abs(gamma[:, None] * matrix)
        assert product.max() > 6e4 or product.min() < 2.0**-13


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_torch_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(C), nn.Linear(C, C), nn.Tanh())
    largest = torch.finfo(dtype).max
    with torch.no_grad():
        module[1].weight.fill_(largest**0.5)  # type: ignore[union-attr, operator]
        module[2].weight.fill_(2 * largest**0.5)  # type: ignore[union-attr, operator]
    model = ns.load(module.to(dtype).eval(), example_inputs=(torch.ones(2, C, dtype=dtype),))
    ((_, why),) = ns.fold(model).skipped
    assert "ends at" in why


@pytest.mark.parametrize("to", ["gamma", "weight"])
def test_fold_affine_and_rmsnorm_keep_what_does_not_fit(to: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C), nn.Tanh())
    with torch.no_grad():
        module[1].weight.fill_(300.0)  # type: ignore[union-attr, operator]
        module[2].weight.fill_(300.0)  # type: ignore[union-attr, operator]
    model = ns.load(module.half().eval(), example_inputs=(torch.ones(2, C).half(),))
    if to == "gamma":
        ((_, why),) = ns.fold_affine(model).skipped
        assert "ends at" in why
        return
    result = ns.swap(model, to="rmsnorm")
    assert len(result.done) == 1
    assert any("keeps its weight" in note and "ends at" in note for note in result.notes)
    graph = result.model.graph
    constants = [graph.constant(v) for v in graph.values() if v.is_constant]
    assert all(np.isfinite(a).all() for a in constants if a is not None)


@pytest.mark.parametrize("place", ["g", "b", "m", "w"])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("form", ["before", "behind"])
def test_numbers_that_are_not_finite_are_left_alone(form: str, number: float, place: str) -> None:
    arrays = {"w": np.eye(C) + 1, **_statistics([1.0, 2.0, 3.0, 4.0])}
    arrays[place] = arrays[place].copy()
    arrays[place].reshape(-1)[1] = number
    relu = helper.make_node("Relu", ["x"], ["r"])
    product = helper.make_node("MatMul", ["h" if form == "before" else "x", "w"], ["k"])
    nodes = [relu, _bn("r", "h"), product, helper.make_node("Relu", ["k"], ["y"])]
    if form == "behind":
        nodes = [product, _bn("k", "h"), helper.make_node("Relu", ["h"], ["y"])]
    model = _model(nodes, arrays, np.dtype(np.float32))
    result = ns.fold(model)
    assert not result.modified
    ((_, why),) = result.skipped
    assert "not finite" in why


def test_a_mask_with_minus_infinity_stays_where_it_is() -> None:
    mask = np.array([0.0, -np.inf, 0.0, 0.0])
    arrays = {"w": np.eye(C) + 1, "mask": mask, **_statistics([1.0, 2.0, 3.0, 4.0])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["k"]),
        _bn("k", "h"),
        helper.make_node("Add", ["h", "mask"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    model = _model(nodes, arrays, np.dtype(np.float32))
    result = ns.fold(model)
    assert len(result.done) == 1
    x = {"x": np.random.default_rng(0).standard_normal((3, C)).astype(np.float32)}
    np.testing.assert_allclose(result.model.run(x)["y"], model.run(x)["y"], rtol=1e-5)


@pytest.mark.parametrize("to", ["batchnorm", "affine"])
def test_a_fit_that_float16_cannot_hold_leaves_the_norm(to: str) -> None:
    """Inputs whose variance is beyond float16, or a matrix whose entries are."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C), nn.Tanh()).half()
    with torch.no_grad():
        if to == "batchnorm":
            module[0].weight.mul_(3000)  # type: ignore[union-attr, operator]
        else:
            module[0].weight.mul_(1e-3)  # type: ignore[union-attr, operator]
            module[0].bias.zero_()  # type: ignore[union-attr, operator]
            module[1].eps = 1e-12  # type: ignore[union-attr, assignment]
            module[1].weight.fill_(3e4)  # type: ignore[union-attr, operator]
    x = torch.randn(64, C).half()
    model = ns.load(module.eval(), example_inputs=(x[:2],), dynamic_axes={"input": {0: "b"}})
    result = ns.swap(model, to=to, data=x.numpy())
    assert not result.modified
    ((_, why),) = result.skipped
    assert "float16" in why


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_says_what_is_wrong(dtype: np.dtype) -> None:
    assert rounded(np.ones(3), dtype, "w").dtype == dtype
    with pytest.raises(OutOfRange, match="w would hold 1e"):
        rounded(np.array([1e39]), dtype, "w")
    with pytest.raises(OutOfRange, match="not finite"):
        rounded(np.array([np.nan]), dtype, "w")
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    few = np.array([[least * 1.4, 1.0]])
    with pytest.raises(OutOfRange, match="loses precision"):
        check_precision(few, few, None, dtype=dtype, channels=[(0,)], name="w")
    check_precision(few, few, None, dtype=dtype, channels=[(1,)], name="w")
    check_precision(few, few, few, dtype=dtype, channels=[(0,)], name="w")
    check_precision(few, few + 1, None, dtype=dtype, channels=[(0,)], name="w")
