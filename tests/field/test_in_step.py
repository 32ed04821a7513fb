"""Two graphs in step are two evaluations, of which what both compute alike is computed once."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

import normswap as ns
from normswap.field import in_step
from normswap.field.evaluation import Side, drawn, equal, evaluate
from normswap.field.node import At, Read
from normswap.field.values import Field
from normswap.model import Model
from normswap.parity.probes import draw_feeds
from tests.zoo.exports import model_as

KEY = b"a key of thirty-two bytes or so."


def side(model: Model) -> Side:
    return Side(model.graph, model.graph.inputs, model.graph.outputs)


def symbols(over: Field, model: Model) -> list[Read]:
    feeds = draw_feeds(model, "normal", 2, [0])
    found = drawn(over, {spec.name: feeds[spec.name] for spec in model.inputs})
    return list(found.values())


@pytest.mark.parametrize(
    ("name", "form"), [("spelled_vit", "torchscript-14"), ("spelled_vit", "fx")]
)
def test_as_two_evaluations(name: str, form: str) -> None:
    original = model_as(name, form)
    fused = ns.swap(original, to="fused").model
    apart, together = Field(5, KEY), Field(5, KEY)
    given = symbols(apart, original)
    alone = [evaluate(apart, side(model), given) for model in (original, fused)]
    computed = []

    def compute(at: At) -> list[Read]:
        computed.append(at.node.op)
        return real(at)

    real = in_step.compute
    with patch.object(in_step, "compute", compute):
        given = symbols(together, original)
        both = in_step.evaluate_both(together, side(original), side(fused), given)
    for one, other in zip(alone, both, strict=True):
        assert all(map(equal, one.outputs, other.outputs))
        assert one.uninterpreted == other.uninterpreted
    assert together.tally.counts == apart.tally.counts
    assert together.tally.largest.degree == apart.tally.largest.degree
    assert together.tally.largest.bits <= apart.tally.largest.bits
    assert len(computed) < 1.25 * len(original.graph.nodes)


def test_what_differs_is_computed() -> None:
    original = model_as("spelled_vit", "torchscript-14")
    other = original.copy()
    value = next(v for v in other.graph.values() if v.name == "head.weight")
    array = np.array(other.graph.constant(value))
    array[0, 0] = np.nextafter(array[0, 0], np.inf)
    other.graph.replace_constant(value, array)
    over = Field(5, KEY)
    one, two = in_step.evaluate_both(over, side(original), side(other), symbols(over, original))
    assert not equal(one.outputs[0], two.outputs[0])


def test_growth_that_is_not_covered_is_not_shared() -> None:
    over = Field(5, KEY)
    x = over.symbol(np.ones(3))
    small = over.add(x, x)
    large = over.subtract(
        over.multiply(small, small), over.multiply(small, over.subtract(small, x))
    )
    assert small.growth.covers(x.growth)
    assert not x.growth.covers(small.growth)
    assert large.growth.covers(small.growth)
    assert not small.growth.covers(large.growth)
