"""Every operator kind's rounding, against straightforward loops over numpy's own numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from normswap.graph.graph import BFLOAT16
from normswap.graph.rounding import as_half, rounded
from normswap.graph.simulation import Overflow, Simulation
from normswap.model import Model
from tests.parity.conftest import Builder

HALF = np.float16
Make = Callable[..., Model]
X = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32) * 3
SHAPE = ("batch", 5, 8)


def whole(model: Model, *arrays: np.ndarray, dtype: Any = HALF) -> list[np.ndarray]:
    return model.graph.whole(dtype)(arrays)


def overflows(model: Model, *arrays: np.ndarray) -> list[Overflow]:
    simulation = Simulation(model.graph, model.graph.inputs, model.graph.outputs, HALF)
    simulation(arrays)
    return simulation.overflows


def half(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float64).astype(HALF)


def each(function: Callable[..., float], *arrays: np.ndarray) -> np.ndarray:
    """``function`` of numbers in half precision, one by one, each result rounded."""
    out = np.empty(np.broadcast_shapes(*(a.shape for a in arrays)), HALF)
    rows = np.broadcast_arrays(*(half(a) for a in arrays))
    with np.errstate(all="ignore"):
        for place in np.ndindex(out.shape):
            out[place] = HALF(function(*(row[place] for row in rows)))
    return out


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(wanted, np.float32))


class TestRounding:
    @given(st.floats(width=64), st.sampled_from([np.dtype(HALF), BFLOAT16]))
    def test_to_the_nearest_and_ties_to_even(self, number: float, dtype: np.dtype) -> None:
        found = float(rounded(np.array(number), dtype))
        if not math.isfinite(number):
            assert found == number or math.isnan(number)
            return
        info = ml_dtypes.finfo(dtype)
        exponent = max(math.frexp(number)[1] - 1, int(info.minexp))
        step = 2.0 ** (exponent - int(info.nmant))
        if dtype == BFLOAT16 and abs(number) < 2**-126:
            return  # float32 in between has subnormals of its own
        units = number / step  # exact: a power of two
        wanted = round(units) * step  # Python's rounds ties to even
        assert found == (
            wanted if abs(wanted) <= float(info.max) else math.copysign(math.inf, number)
        )

    def test_is_not_done_twice(self) -> None:
        above_a_tie = np.array([1 + 2**-8 + 2**-40])
        assert rounded(above_a_tie, BFLOAT16)[0] == 1 + 2**-7

    def test_constants_that_stand_for_infinity_stay_finite(self) -> None:
        held = as_half(np.array([-3.4e38, -np.inf, 7e4, 1e-12, 2.0]), HALF)
        assert held.tolist() == [-65504, -math.inf, math.inf, 0, 2]


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Add", lambda a, b: a + b),
        ("Sub", lambda a, b: a - b),
        ("Mul", lambda a, b: a * b),
        ("Div", lambda a, b: a / b),
        ("Pow", lambda a, b: np.float64(a) ** np.float64(b)),
    ],
)
def test_two_values(onnx_model: Make, op: str, function: Callable[..., float]) -> None:
    other = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    model = onnx_model([(op, ["x", "c"], "y", {})], {"x": (SHAPE, np.float32)}, ["y"], {"c": other})
    x = np.abs(X) * 100
    (found,) = whole(model, x)
    assert found.dtype == np.float32
    same(found, each(function, x, other))


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Sqrt", np.sqrt),
        ("Reciprocal", lambda a: HALF(1) / a),
        ("Exp", lambda a: np.exp(np.float64(a))),
        ("Neg", lambda a: -a),
        ("Tanh", lambda a: np.tanh(np.float64(a))),
        ("Erf", lambda a: math.erf(float(a))),
        ("Cast", lambda a: a),
    ],
)
def test_one_value(onnx_model: Make, op: str, function: Callable[..., float]) -> None:
    attributes = {"to": 1} if op == "Cast" else {}
    model = onnx_model([(op, ["x"], "y", attributes)], {"x": (SHAPE, np.float32)}, ["y"])
    x = np.abs(X)
    same(whole(model, x)[0], each(function, x))


def sums(x: np.ndarray) -> np.ndarray:
    """Of the rows, each rounded once."""
    out = np.empty((*x.shape[:-1], 1), HALF)
    for place in np.ndindex(x.shape[:-1]):
        out[(*place, 0)] = HALF(math.fsum(float(v) for v in half(x[place])))
    return out


def test_the_sum_of_a_mean_overflows_before_it_is_divided(onnx_model: Make) -> None:
    nodes = [("ReduceMean", ["x"], "y", {"axes": [-1]})]
    model = onnx_model(nodes, {"x": (SHAPE, np.float32)}, ["y"])
    same(whole(model, X)[0], each(lambda a: a / HALF(8), sums(X)))
    assert np.isposinf(whole(model, np.full_like(X, 9000))[0]).all()
    assert (whole(model, np.full_like(X, 8000))[0] == 8000).all()
    (place,) = overflows(model, np.full_like(X, 9000))
    assert (place.value.name, place.magnitude) == ("y", 9000 * 8)


@pytest.mark.parametrize(("op", "root"), [("ReduceSumSquare", False), ("ReduceL2", True)])
def test_squares(onnx_model: Make, op: str, root: bool) -> None:
    model = onnx_model([(op, ["x"], "y", {"axes": [-1]})], {"x": (SHAPE, np.float32)}, ["y"])
    squares = sums(each(lambda a: a * a, X))
    same(whole(model, X)[0], each(np.sqrt, squares) if root else squares)
    x = X.copy()
    x[0, 0, 0] = 300  # 90,000
    found = whole(model, x)[0]
    assert np.isposinf(found[0, 0, 0])
    assert np.isfinite(found[0, 1:]).all()


def softmaxed(x: np.ndarray) -> np.ndarray:
    top = half(x).max(-1, keepdims=True)
    powers = each(lambda a: np.exp(np.float64(a)), each(lambda a, b: a - b, x, top))
    return each(lambda a, b: a / b, powers, sums(powers))


def test_softmax(onnx_model: Make) -> None:
    model = onnx_model([("Softmax", ["x"], "y", {})], {"x": (SHAPE, np.float32)}, ["y"])
    same(whole(model, 4 * X)[0], softmaxed(4 * X))
    x = X.copy()
    x[0, 0, 0] = 1e5
    found = whole(model, x)[0]
    assert np.isnan(found[0, 0]).all()
    assert np.isfinite(found[1:]).all()


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty((*a.shape[:-1], b.shape[-1]), HALF)
    for place in np.ndindex(out.shape):
        row, column = half(a[place[:-1]]), half(b[:, place[-1]])
        terms = (float(v) * float(w) for v, w in zip(row, column, strict=True))
        out[place] = HALF(math.fsum(terms))
    return out


WEIGHT = np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32)
BIAS = np.random.default_rng(3).standard_normal(4).astype(np.float32)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_the_product_of_a_layer_is_rounded_before_its_bias(build: Builder, kind: str) -> None:
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHT.T))
        layer.bias.copy_(torch.from_numpy(BIAS))
    model = build(kind, layer, {"x": torch.from_numpy(X)})
    same(whole(model, X)[0], each(lambda a, b: a + b, products(X, WEIGHT), BIAS))


def test_gemm_with_factors(onnx_model: Make) -> None:
    nodes = [("Gemm", ["x", "w", "b"], "y", {"beta": 0.5})]
    inputs = {"x": (("batch", 8), np.float32)}
    model = onnx_model(nodes, inputs, ["y"], {"w": WEIGHT, "b": BIAS})
    wanted = each(lambda a, b: a + HALF(0.5) * b, products(X[0], WEIGHT), BIAS)
    same(whole(model, X[0])[0], wanted)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_convolution(build: Builder, kind: str) -> None:
    layer = nn.Conv2d(2, 3, 2)
    x = torch.randn(2, 2, 3, 3)
    model = build(kind, layer, {"x": x})
    patches = functional.unfold(x, 2).transpose(1, 2).numpy()  # [N, places, C k k]
    weight = layer.weight.detach().reshape(3, -1).T.numpy()
    bias = layer.bias.detach().numpy()  # type: ignore[union-attr]
    wanted = each(lambda a, b: a + b, products(patches, weight), bias)
    same(whole(model, x.numpy())[0], wanted.transpose(0, 2, 1).reshape(2, 3, 2, 2))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_norm_that_is_one_operator_has_statistics_in_float32(build: Builder, kind: str) -> None:
    norm = nn.LayerNorm(8, eps=1e-12)  # 0 in float16, but an attribute
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8))
        norm.bias.copy_(torch.randn(8))
    model = build(kind, norm, {"x": torch.from_numpy(X)})
    x = 3000 * X  # whose squares overflow
    x[0, 0] = 1.5  # no variance at all
    in_half = torch.from_numpy(half(x).astype(np.float64))
    weight, bias = (
        torch.from_numpy(half(p.detach().numpy()).astype(float)) for p in norm.parameters()
    )
    wanted = functional.layer_norm(in_half, (8,), weight, bias, 1e-12).numpy()
    same(whole(model, x)[0], half(wanted))


class Spelled(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.epsilon)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
class TestSpelledNorm:
    def test_is_rounded_operator_by_operator(self, build: Builder, kind: str) -> None:
        model = build(kind, Spelled(1e-5), {"x": torch.from_numpy(X)}, "")
        mean = each(lambda a: a / HALF(8), sums(X))
        centred = each(lambda a, b: a - b, X, mean)
        variance = each(lambda a: a / HALF(8), sums(each(lambda a: a * a, centred)))
        root = each(np.sqrt, each(lambda a: a + HALF(1e-5), variance))
        same(whole(model, X)[0], each(lambda a, b: a / b, centred, root))

    def test_squares_at_300(self, build: Builder, kind: str) -> None:
        model = build(kind, Spelled(1e-5), {"x": torch.from_numpy(X)})
        x = X.copy()
        x[0, 0, 0] += 400
        found = whole(model, x)[0]
        assert (found[0, 0] == 0).all()  # an infinite variance
        assert np.isfinite(found).all()
        places = overflows(model, x)
        assert [place.node.op for place in places[:1] if place.node] == ["Pow"]
        assert places[0].magnitude > 65504

    def test_an_epsilon_that_is_no_more(self, build: Builder, kind: str) -> None:
        x = X.copy()
        x[0, 0] = 1.5
        ordinary = whole(build(kind, Spelled(1e-5), {"x": torch.from_numpy(X)}), x)[0]
        assert np.isfinite(ordinary).all()
        model = build(kind, Spelled(1e-12), {"x": torch.from_numpy(X)})
        found = whole(model, x)[0]
        assert np.isnan(found[0, 0]).all()
        assert np.isfinite(found[0, 1:]).all()
        place = overflows(model, x)[0]
        assert place.node is not None
        assert place.node.operator.arithmetic == "product"
        assert place.magnitude == 0


def test_nan_goes_on_and_is_found_once_where_it_begins(onnx_model: Make) -> None:
    nodes = [("Log", ["x"], "l", {}), ("Add", ["l", "x"], "s", {}), ("Mul", ["s", "s"], "y", {})]
    model = onnx_model(nodes, {"x": (SHAPE, np.float32)}, ["y"])
    x = np.abs(X) + 1
    x[0, 0, 0] = -1
    assert np.isnan(whole(model, x)[0][0, 0, 0])
    assert [place.value.name for place in overflows(model, x)] == ["l"]
    assert overflows(model, np.abs(x)) == []


@pytest.mark.parametrize(("unbiased", "root"), [(0, False), (1, False), (1, True)])
def test_torch_variances(build: Builder, unbiased: int, root: bool) -> None:
    class Spread(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            spread = x.std if root else x.var
            return spread(-1, correction=unbiased, keepdim=True)  # type: ignore[operator]

    model = build("fx", Spread(), {"x": torch.from_numpy(X)})
    mean = each(lambda a: a / HALF(8), sums(X))
    squares = each(lambda a: a * a, each(lambda a, b: a - b, X, mean))
    wanted = each(lambda a: a / HALF(8 - unbiased), sums(squares))
    same(whole(model, X)[0], each(np.sqrt, wanted) if root else wanted)


@pytest.mark.parametrize("how", ["plain", "causal", "masked", "scaled"])
def test_attention_in_one_operator(build: Builder, how: str) -> None:
    seen = np.tri(5, dtype=bool) if how == "causal" else np.arange(25).reshape(5, 5) % 3 != 1
    scale = 0.7 if how == "scaled" else None

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.from_numpy(seen))

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            mask = self.seen if how == "masked" else None
            return functional.scaled_dot_product_attention(
                q, k, v, mask, is_causal=how == "causal", scale=scale
            )

    rng = np.random.default_rng(4)
    q, k, v = rng.standard_normal((3, 1, 1, 5, 8)).astype(np.float32)
    feeds = {n: torch.from_numpy(np.repeat(a, 2, 0)) for n, a in zip("qkv", (q, k, v), strict=True)}
    model = build("fx", Attending(), feeds)
    root = np.float64((scale or 8**-0.5) ** 0.5)
    q, k = (each(lambda a: np.float64(a) * root, a[0, 0]) for a in (q, k))
    logits = products(q, k.T)
    if how in ("causal", "masked"):
        logits = np.where(seen, logits, -np.inf)
    found = whole(model, *(t.numpy() for t in feeds.values()))[0]
    same(found[0, 0], products(softmaxed(logits), v[0, 0]))


def test_batch_norm_of_torch(build: Builder) -> None:
    norm = nn.BatchNorm1d(5)
    norm.running_var = torch.rand(5) * 1e-6  # subnormal in float16
    model = build("fx", norm, {"x": torch.from_numpy(X)})
    held = [half(t.detach().numpy()).astype(float) for t in (norm.running_mean, norm.running_var)]  # type: ignore[union-attr]
    mean, variance = (t[:, None] for t in held)
    wanted = (half(X).astype(float) - mean) / np.sqrt(variance + norm.eps)
    same(whole(model, X)[0], half(wanted))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_model_in_half_is_taken_at_its_word(build: Builder, onnx_model: Make, kind: str) -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = x.half().float()
            return ((wide * wide * 1e-4).half() + 1).float()

    nodes: list[Any] = [
        ("Cast", ["x"], "h", {"to": 10}), ("Cast", ["h"], "w", {"to": 1}),
        ("Mul", ["w", "w"], "s", {}), ("Mul", ["s", "c"], "t", {}),
        ("Cast", ["t"], "g", {"to": 10}), ("Add", ["g", "one"], "z", {}),
        ("Cast", ["z"], "y", {"to": 1}),
    ]  # fmt: skip
    constants = {"c": np.float32(1e-4), "one": HALF(1)}
    model = (
        build("fx", Mixed(), {"x": torch.from_numpy(X)})
        if kind == "fx"
        else onnx_model(nodes, {"x": (SHAPE, np.float32)}, ["y"], constants)
    )
    x = 1000 * X
    wide = half(x).astype(np.float64)
    wanted = each(
        lambda a: a + HALF(1),
        half(wide * wide * float(np.float32(1e-4) if kind == "onnx" else 1e-4)),
    )
    same(whole(model, x)[0], wanted)
    assert not overflows(model, x)


def test_bfloat16_does_not_overflow_there(onnx_model: Make) -> None:
    model = onnx_model([("Mul", ["x", "x"], "y", {})], {"x": (SHAPE, np.float32)}, ["y"])
    x = 1000 * X
    held = x.astype(BFLOAT16).astype(np.float64)
    same(whole(model, x, dtype=BFLOAT16)[0], (held * held).astype(BFLOAT16))


def test_watching_rounds_nothing(onnx_model: Make) -> None:
    nodes = [("Mul", ["x", "x"], "s", {}), ("ReduceMean", ["s"], "m", {}), ("Sqrt", ["m"], "y", {})]
    model = onnx_model(nodes, {"x": (SHAPE, np.float32)}, ["y"])
    graph, x = model.graph, np.full_like(X, 300)
    watch = Simulation(graph, graph.inputs, graph.outputs, HALF, watch=True)
    assert watch([x])[0].item() == 300
    assert [place.value.name for place in watch.overflows] == ["s", "m"]


def test_an_input_that_is_not_given(onnx_model: Make) -> None:
    model = onnx_model([("Neg", ["x"], "y", {})], {"x": (SHAPE, np.float32)}, ["y"])
    with pytest.raises(ValueError, match="'x' is needed"):
        model.graph.slice([], model.graph.outputs, HALF)
