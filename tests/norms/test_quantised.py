"""Norms of quantised files: written in place between the pairs, or left and told why."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import normswap as ns
from normswap.norms.quantised import QUANTISED

_OPERATOR = "y = LayerNormalization<axis=-1, epsilon=1e-5>(xd, g, b)"
_STEPS = (
    "m = ReduceMean<axes=[-1]>(xd)", "d = Sub(xd, m)", "q = Pow(d, two)",
    "v = ReduceMean<axes=[-1]>(q)", "w = Add(v, e)", "r = Sqrt(w)", "n = Div(d, r)",
    "k = Mul(n, g)", "y = Add(k, b)",
)  # fmt: skip


def _pair(value: str) -> str:
    return f"{value}q = QuantizeLinear({value}, s, z) {value}d = DequantizeLinear({value}q, s, z)"


def _spelled(quantised: str = "", wrong: bool = False) -> str:
    """The steps of a norm; behind the ``quantised`` ones there is a pair."""
    steps = []
    for step in _STEPS:
        name, _, call = step.partition(" = ")
        for value in quantised:
            call = call.replace(f"({value},", f"({value}d,").replace(f", {value})", f", {value}d)")
            call = call.replace(f"({value})", f"({value}d)")
        call = call.replace("Sqrt(", "Exp(") if wrong else call
        steps.append(f"{name} = {call} {_pair(name) if name in quantised else ''}")
    return " ".join(steps)


def _model(norm: str) -> ns.Model:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[2, 5, 12] x) => (float[2, 5, 12] out)
        <float s = {{0.02}}, int8 z = {{0}}, float two = {{2}}, float e = {{1e-5}},
         float[12] g = {{1,-2,0.5,3,1,1,2,1,0.25,1,1,1}},
         float[12] b = {{1,0,0,0,0,1,0,1,0,0,0,0}}> {{
        {_pair("x")} {norm} {_pair("y")} out = Relu(yd)
    }}"""
    return ns.load(ir.serde.deserialize_model(onnx.parser.parse_model(text)))


@pytest.mark.parametrize("norm", [_OPERATOR, _spelled()], ids=["operator", "spelled"])
@pytest.mark.parametrize("to", ["fused", "elementary", "product", "lp"])
def test_a_norm_between_pairs_is_written_and_the_pairs_stay(norm: str, to: str) -> None:
    model = _model(norm)
    (site,) = model.sites
    assert (site.input, site.output) == ("xd", "y")
    result = ns.swap(model, to=to)
    assert len(result.done) == (to != "fused" or norm != _OPERATOR)
    quantisers = [n for n in result.model.graph.nodes if n.operator.quantises]
    assert len(quantisers) == 4
    for node in quantisers:
        assert node.inputs[1] is not None
        assert result.model.graph.scalar(node.inputs[1]) == pytest.approx(0.02)
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)}
    report = ns.validate(model, result.model, data=x)
    assert report.passed, report.findings


@pytest.mark.parametrize("quantised", ["m", "v", "mdqvwrnk"])
def test_one_with_pairs_inside_is_left_with_the_reason(quantised: str) -> None:
    model = _model(_spelled(quantised))
    assert not model.sites
    assert [found.reason for found in model.location.rejected] == [QUANTISED]


def test_behind_the_last_pair_it_may_be_one() -> None:
    """What is proven in front of the pair is written; weight and bias behind it stay."""
    model = _model(_spelled("n"))
    (site,) = model.sites
    assert (site.output, site.weight) == ("n", None)
    assert ns.validate(model, ns.swap(model, to="product").model).passed


def test_a_look_alike_with_pairs_is_not_said_to_be_one() -> None:
    model = _model(_spelled("m", wrong=True))
    assert not model.sites
    assert QUANTISED not in [found.reason for found in model.location.rejected]
