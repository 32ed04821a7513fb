"""The decomposed LayerNorm is proven, with its constants; look-alikes are left alone."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normswap.graph.graph import Graph
from normswap.graph.onnx.graph import read_graph
from normswap.norms import decomposed, locate
from tests.graph.onnx_text import onnx_graph
from tests.zoo.exports import model_as

C = 6
RANDOM = np.random.default_rng(0)
GAMMA = RANDOM.standard_normal(C).astype(np.float32)
BETA = RANDOM.standard_normal(C).astype(np.float32)
TWO, EPS = np.float32(2), np.float32(1e-5)

# The formula's steps, each with its spellings; x -> y.
MEAN = "m = ReduceMean<axes = [-1], keepdims = 1>(x) "
CENTRE = "d = Sub(x, m) "
SQUARES = {"pow": "q = Pow(d, two) ", "mul": "q = Mul(d, d) "}
VARIANCE = "v = ReduceMean<axes = [-1], keepdims = 1>(q) "
PLUS = {"right": "e = Add(v, eps) ", "left": "e = Add(eps, v) "}
ROOT = {
    "div": "s = Sqrt(e) n = Div(d, s) ",
    "reciprocal": "s = Sqrt(e) r = Reciprocal(s) n = Mul(d, r) ",
    "pow": "s = Pow(e, half) n = Div(d, s) ",
    "negative_pow": "s = Pow(e, minus_half) n = Mul(s, d) ",
}
AFFINE = {
    "both": "g = Mul(n, gamma) y = Add(g, beta) ",
    "swapped": "g = Mul(gamma, n) y = Add(beta, g) ",
    "no_beta": "y = Mul(n, gamma) ",
    "none": "y = Identity(n) ",
}
CONSTANTS = {
    "two": TWO,
    "eps": EPS,
    "gamma": GAMMA,
    "beta": BETA,
    "half": np.float32(0.5),
    "minus_half": np.float32(-0.5),
}


def _graph(body: str, **constants: np.ndarray) -> Graph:
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {body} }}"
    used = {k: np.asarray(v) for k, v in (CONSTANTS | constants).items() if k in body}
    return onnx_graph(text, used, opset=14)


def _spelling(square: str, plus: str, root: str, affine: str) -> str:
    return MEAN + CENTRE + SQUARES[square] + VARIANCE + PLUS[plus] + ROOT[root] + AFFINE[affine]


BASE = _spelling("pow", "right", "div", "both")


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("plus", PLUS)
@pytest.mark.parametrize("root", ROOT)
@pytest.mark.parametrize("affine", AFFINE)
def test_finds_the_spelling_and_its_constants(
    square: str, plus: str, root: str, affine: str
) -> None:
    location = locate(_graph(_spelling(square, plus, root, affine)))
    (site,) = location.sites
    assert (site.kind, site.spelling, site.axes) == ("layer_norm", "decomposed", (2,))
    assert (site.input, site.normalized_shape) == ("x", (C,))
    assert site.epsilon == pytest.approx(float(EPS), rel=1e-6)
    if affine == "none":
        assert site.weight is None
    else:
        np.testing.assert_array_equal(site.weight, GAMMA.astype(np.float64))
    if affine in ("none", "no_beta"):
        assert site.bias is None
    else:
        np.testing.assert_array_equal(site.bias, BETA.astype(np.float64))


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-3])
def test_recovers_epsilon(epsilon: float) -> None:
    graph = _graph(_spelling("pow", "right", "div", "both"), eps=np.float32(epsilon))
    (site,) = locate(graph).sites
    assert site.epsilon == pytest.approx(epsilon, rel=1e-6)


def test_a_single_row_is_enough() -> None:
    """A pooled value at a fixed batch of one."""
    body = _spelling("pow", "right", "div", "both")
    used = {k: np.asarray(v) for k, v in CONSTANTS.items() if k in body}
    graph = onnx_graph(f"(float[1,{C}] x) => (float[1,{C}] y) {{ {body} }}", used, opset=14)
    (site,) = locate(graph).sites
    np.testing.assert_array_equal(site.weight, GAMMA.astype(np.float64))
    np.testing.assert_array_equal(site.bias, BETA.astype(np.float64))
    assert site.epsilon == pytest.approx(1e-5, rel=1e-6)


def test_an_operator_that_cannot_be_evaluated_is_no_norm() -> None:
    body = BASE.replace("d = Sub(x, m)", "z = custom.Keep(x) w = Mul(m, z) d = Sub(x, w)")
    header = '<ir_version: 9, opset_import: ["": 14, "custom": 1]> test '
    proto = onnx.parser.parse_model(
        header + f"(float[2,4,{C}] x) => (float[2,4,{C}] y) {{ {body} }}"
    )
    for name, array in CONSTANTS.items():
        if name in body:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    assert not locate(read_graph(ir.serde.deserialize_model(proto))).sites


@pytest.mark.parametrize("rows", [60_000, 4_000_000])
def test_large_values_are_proven_on_fewer_rows(rows: int) -> None:
    body = _spelling("pow", "right", "div", "both")
    used = {k: np.asarray(v) for k, v in CONSTANTS.items() if k in body}
    graph = onnx_graph(f"(float[{rows},{C}] x) => (float[{rows},{C}] y) {{ {body} }}", used)
    (site,) = locate(graph).sites
    np.testing.assert_array_equal(site.weight, GAMMA.astype(np.float64))


def test_rows_that_differ_beyond_the_cut_are_seen() -> None:
    """A gamma per row that is one for the first rows only: the whole value is checked too."""
    rows = 60_000
    gamma = np.ones((rows, 1), np.float32)
    gamma[rows // 2 :] = 2
    body = _spelling("pow", "right", "div", "none").replace("Identity(n)", "Mul(n, tail)")
    used = {"two": TWO, "eps": EPS, "tail": gamma}
    graph = onnx_graph(f"(float[{rows},{C}] x) => (float[{rows},{C}] y) {{ {body} }}", used)
    outputs = [site.output for site in locate(graph).sites]
    assert outputs == ["n"]  # the norm without that product


EXPONENT = "its result changes with the scale of its input: an exponent is not that of a norm"
EPSILON = "epsilon is not added to the variance under the root"
CENTRING = "what it divides is centred, but not by its own mean"
LOOK_ALIKES = {
    "exponent_4": (BASE.replace("Pow(d, two)", "Pow(d, four)"), EXPONENT),
    "epsilon_outside_the_root": (
        BASE.replace("e = Add(v, eps) s = Sqrt(e)", "e = Sqrt(v) s = Add(e, eps)"),
        EPSILON,
    ),
    "epsilon_twice": (
        BASE.replace("s = Sqrt(e)", "r = Sqrt(e) s = Add(r, eps)"),
        EPSILON,
    ),
    "epsilon_as_a_floor": (BASE.replace("Add(v, eps)", "Max(v, eps)"), EPSILON),
    "epsilon_per_channel": (
        BASE.replace("eps", "gamma_squared"),
        "epsilon differs within what is normalised",
    ),
    "epsilon_computed": (
        BASE.replace("Add(v, eps)", "Add(v, z)"),
        "more than one computed value flows in (x, z)",
    ),
    "variance_over_another_axis": (
        BASE.replace("v = ReduceMean<axes = [-1]", "v = ReduceMean<axes = [1]"),
        CENTRING,
    ),
    "mean_over_another_axis": (
        BASE.replace("m = ReduceMean<axes = [-1]", "m = ReduceMean<axes = [1]"),
        CENTRING,
    ),
    "over_the_batch": (BASE.replace("[-1]", "[0]"), "it reduces over the batch"),
    "half_the_mean": (BASE.replace("d = Sub(x, m)", "h = Mul(m, half) d = Sub(x, h)"), CENTRING),
    "foreign_numerator": (
        BASE.replace("n = Div(d, s)", "n = Div(x, s)"),
        "what it divides by is not the root mean square of what it divides",
    ),
    "foreign_mean": (
        BASE.replace("ReduceMean<axes = [-1], keepdims = 1>(x)", "Identity(z)"),
        CENTRING,
    ),
    "unit_length": (
        "q = Mul(x, x) v = ReduceSum(q, last) s = Sqrt(v) y = Div(x, s)",
        "it is an L2 normalisation",
    ),
    "unit_length_by_an_operator": ("y = LpNormalization<axis = -1>(x)", "it is an L2"),
    "dividing_by_zero": (
        BASE.replace("n = Div(d, s)", "w = Mul(s, zero) n = Div(d, w)"),
        "it divides by zero",
    ),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_leaves_look_alikes_alone_and_says_so(name: str) -> None:
    body, reason = LOOK_ALIKES[name]
    text = f"(float[B,4,{C}] x, float[B,4,1] z) => (float[B,4,{C}] y) {{ {body} }}"
    extra = {
        "four": np.float32(4),
        "zero": np.float32(0),
        "gamma_squared": np.square(GAMMA),
        "last": np.array([-1]),
    }
    used = {
        k: np.asarray(v) for k, v in (CONSTANTS | extra).items() if re.search(rf"\b{k}\b", body)
    }
    location = locate(onnx_graph(text, used, opset=14))
    assert not location.sites
    (rejection,) = location.rejected
    assert rejection.reason.startswith(reason)


def test_two_plain_norms_in_a_row_are_two_sites() -> None:
    """LN(LN(x)) equals one LN with other constants, yet each is a norm of its own."""
    plain = _spelling("pow", "right", "div", "none")
    first = plain.replace("y = Identity(n)", "z = Identity(n)")
    second = re.sub(r"\b([mdqvesn])\b", r"\g<1>2", plain).replace("(x", "(z")
    location = locate(_graph(first + second))
    assert [(s.input, s.output) for s in location.sites] == [("x", "n"), ("z", "n2")]


def test_a_norm_operator_is_read_off() -> None:
    body = "y = LayerNormalization<axis = -1, epsilon = 0.001>(x, gamma, beta) "
    text = f"(float[B,4,{C}] x) => (float[B,4,{C}] y) {{ {body} }}"
    graph = onnx_graph(text, {"gamma": GAMMA, "beta": BETA})
    (site,) = locate(graph).sites
    assert (site.kind, site.spelling, site.axes, site.epsilon) == ("layer_norm", "op", (2,), 1e-3)
    np.testing.assert_array_equal(site.weight, GAMMA.astype(np.float64))


def test_the_last_exit_alone_says_what_all_say(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = model_as("hf_vit", "torchscript-14").graph
    located = locate(graph)
    assert located.sites
    monkeypatch.setattr(decomposed, "_last_in_row", lambda *_: None)
    assert [s.to_json() for s in locate(graph).sites] == [s.to_json() for s in located.sites]
    assert locate(graph).rejected == located.rejected
