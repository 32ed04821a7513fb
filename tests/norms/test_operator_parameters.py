"""Operators whose parameters have shapes or meanings of their own: scales that broadcast, and
BatchNorms of older opsets."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import normswap as ns
from tests.graph.onnx_text import onnx_graph

B, S, D = 2, 5, 8
RANDOM = np.random.default_rng(0)


def _model(body: str, arrays: dict[str, np.ndarray], opset: int, x: str = f"b,{S},{D}") -> ns.Model:
    text = f"(float[{x}] x) => (float[{x}] y) {{ {body} }}"
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return ns.load(onnx_graph(text, arrays, opset).model)


def _run(model: ns.Model, x: np.ndarray) -> np.ndarray:
    """By ONNX Runtime, from the file."""
    proto = ir.serde.serialize_model(model.to_onnx_ir())
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


OPERATORS = {"LayerNormalization": ("layer_norm", 17), "RMSNormalization": ("rms_norm", 23)}
# The axis, and the shape of the scale; those of rows are refused.
PER_CHANNEL = [(-1, (1, 1, D)), (-1, (1, D)), (-1, (D,)), (-1, (1,)), (-1, (1, 1, 1)), (-1, ()),
               (1, (1, S, D)), (1, (S, D)), (1, (D,)), (1, (S, 1)), (1, (1, 1, D))]  # fmt: skip
PER_ROW = [(-1, (S, D)), (-1, (S, 1)), (-1, (1, S, 1)), (-1, (B, 1, 1))]


def _normed(op: str, axis: int, shape: tuple[int, ...], x: str = f"b,{S},{D}") -> ns.Model:
    weight = RANDOM.uniform(0.5, 2, shape)
    body = f"h = {op}<axis = {axis}>(x, g) y = MatMul(h, w)"
    return _model(body, {"g": weight, "w": RANDOM.standard_normal((D, D))}, OPERATORS[op][1], x)


@pytest.mark.parametrize(("axis", "shape"), PER_CHANNEL)
@pytest.mark.parametrize("op", OPERATORS)
def test_a_scale_that_broadcasts_over_rows_is_one_of_each_channel(
    op: str, axis: int, shape: tuple[int, ...]
) -> None:
    model = _normed(op, axis, shape)
    (site,) = ns.locate(model)
    assert site.kind == OPERATORS[op][0]
    assert site.weight is not None
    assert site.weight.shape == site.normalized_shape == ((D,) if axis == -1 else (S, D))
    folded = ns.fold_affine(model)
    assert bool(folded.done) == (axis == -1)
    x = {"x": RANDOM.standard_normal((B, S, D)).astype(np.float32)}
    (old,), (new,) = (m.run(x, np.float64).values() for m in (model, folded.model))
    np.testing.assert_allclose(new, old, atol=1e-5)


@pytest.mark.parametrize(("axis", "shape"), PER_ROW)
@pytest.mark.parametrize("op", OPERATORS)
def test_a_scale_of_each_row_is_left_alone(op: str, axis: int, shape: tuple[int, ...]) -> None:
    model = _normed(op, axis, shape, f"{B},{S},{D}")
    assert not ns.locate(model)
    (rejection,) = model.location.rejected
    assert "row to row" in rejection.reason
    for result in (ns.fold_affine(model), ns.swap(model, to="rmsnorm"), ns.fold(model)):
        assert not result.modified


@pytest.mark.parametrize("to", ["batchnorm", "affine"])
@pytest.mark.parametrize("op", OPERATORS)
def test_what_becomes_of_it_loads(op: str, to: str) -> None:
    model = _normed(op, -1, (1, 1, D))
    data = {"x": RANDOM.standard_normal((32, S, D)).astype(np.float32)}
    for result in (swapped := ns.swap(model, to=to, data=data), ns.fold(swapped.model)):
        assert result.done
        assert _run(result.model, data["x"]).shape == (32, S, D)


# -- BatchNormalization ----------------------------------------------------------------------------

STATISTICS = {"s": RANDOM.uniform(0.5, 2, 3), "t": np.ones(3), "m": np.ones(3), "v": np.ones(3) * 4}
CONV = "c = Conv(x, k)"
IMAGE = {"k": RANDOM.standard_normal((3, 3, 1, 1)), **STATISTICS}
TRAINING = [
    (7, "y, a, b, d, e = BatchNormalization(c, s, t, m, v)"),
    (9, "y, a, b, d, e = BatchNormalization(c, s, t, m, v)"),
    (13, "y, a, b, d, e = BatchNormalization(c, s, t, m, v)"),
    (14, "y, a, b = BatchNormalization<training_mode = 1>(c, s, t, m, v)"),
    (17, "y, a, b = BatchNormalization<training_mode = 1>(c, s, t, m, v)"),
    (6, "y = BatchNormalization(c, s, t, m, v)"),
]
EVALUATION = [
    (6, "y = BatchNormalization<is_test = 1>(c, s, t, m, v)"),
    (7, "y = BatchNormalization(c, s, t, m, v)"),
    (9, "y = BatchNormalization(c, s, t, m, v)"),
    (14, "y = BatchNormalization<training_mode = 0>(c, s, t, m, v)"),
    (15, "y = BatchNormalization(c, s, t, m, v)"),
]


@pytest.mark.parametrize(("opset", "body"), TRAINING)
def test_a_batch_norm_in_training_form_stays(opset: int, body: str) -> None:
    model = _model(f"{CONV} {body}", IMAGE, opset, "2,3,4,4")
    result = ns.fold(model)
    assert not result.modified
    told = [why for _, why in result.skipped] + result.notes
    assert any("training mode" in why for why in told)


@pytest.mark.parametrize(("opset", "body"), EVALUATION)
def test_a_batch_norm_in_evaluation_form_folds(opset: int, body: str) -> None:
    result = ns.fold(_model(f"{CONV} {body}", IMAGE, opset, "2,3,4,4"))
    assert len(result.done) == 1
    assert [node.op for node in result.model.graph.nodes] == ["Conv"]


@pytest.mark.parametrize("shape", [(3, 4, 4), (3,)])
def test_parameters_of_each_element_are_none_of_each_channel(shape: tuple[int, ...]) -> None:
    arrays = {name: np.broadcast_to(a[:, None, None], (3, 4, 4)) for name, a in STATISTICS.items()}
    arrays = {"k": IMAGE["k"], **(arrays if len(shape) == 3 else STATISTICS)}
    body = f"{CONV} y = BatchNormalization<spatial = 0>(c, s, t, m, v)"
    model = _model(body, arrays, 8, "2,3,4,4")
    result = ns.fold(model)
    assert bool(result.done) == (len(shape) == 1)
    assert bool(ns.locate(model)) == (len(shape) == 1)
    assert any("each element" in note for note in result.notes) == (len(shape) == 3)
