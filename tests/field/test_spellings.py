"""Spellings of norms are certified as the norm, and look-alikes are not.

They are those of the tests that locate norms (tests/norms).
"""

from __future__ import annotations

import copy

import onnx_ir as ir
import pytest
from hypothesis import given

import normswap as ns
from normswap.model import Model
from normswap.parity.certified import certified
from tests.effort import examples_of
from tests.norms.lowered_spellings import lowered_spellings
from tests.norms.near_misses import MUTATIONS, mutable, near_miss
from tests.norms.spelling_checks import examples
from tests.norms.spelling_plan import CHOICES, Plan, plans
from tests.norms.spelling_truth import Case
from tests.norms.spellings import spellings, written

# Those that use no more of a root than that it is one, and round no constant. A mean of squares by
# 1 / C, an unbiased variance, the sqrt(C) in gamma of a sum and beta / gamma are rounded; |d|^2,
# the square of a root, the root of an inverse and half of a logarithm are laws that a certificate
# does not use.
EXACT = {
    "kind": ("layer_norm", "rms_norm"),
    "average": ("mean", "sum_div", "pool"),
    "variance": ("biased", "moments"),
    "square": ("pow", "pow_int", "pow_cast", "mul", "sum_square"),
    "order": ("plain", "scale_first", "gamma_inside"),
    "root": ("sqrt_div", "sqrt_reciprocal", "one_over", "pow_div", "pow_mul"),
}
# Gammas of one: what tells a look-alike from the norm is its structure alone.
PLAIN = plans(
    kind=("layer_norm", "rms_norm"), reader=("none",), source=("graph", "add"), gamma=("ones",),
    order=("plain", "scale_first", "gamma_inside"), affine=("gamma", "none"), variance=("biased",),
)  # fmt: skip
LOOK_ALIKES = 900


def loaded(case: Case) -> Model:
    return ns.load(ir.serde.deserialize_model(copy.deepcopy(case.proto)))


def test_the_choices_are_those_that_there_are() -> None:
    assert all(set(some) <= {*CHOICES[name], "moments"} for name, some in EXACT.items())


@examples(15, thorough=250)
@given(spellings(**EXACT))
def test_exact_spellings_are_certified_as_the_norm(case: Case) -> None:
    model = loaded(case)
    found = certified(model, ns.swap(model, to="fused").model)
    assert found.certified, found.reason
    assert found.error <= 1e-12


@examples(8, thorough=250)
@given(spellings() | lowered_spellings())
def test_any_spelling_is_certified_or_the_reason_is_told(case: Case) -> None:
    model = loaded(case)
    found = certified(model, ns.swap(model, to="fused").model)
    assert found.certified != bool(found.reason)
    assert certified(model, model.copy()).certified


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_no_look_alike_is_certified(mutation: str) -> None:
    @examples(examples_of(1, -(-LOOK_ALIKES // len(MUTATIONS))))
    @given(PLAIN)
    def check(plan: Plan) -> None:
        plan = mutable(plan, mutation)
        norm, other = loaded(written(plan)), loaded(near_miss(plan, mutation))
        if len(norm.inputs) == len(other.inputs):
            assert not certified(norm, other).certified
        else:  # they are not to be compared at all
            assert mutation == "epsilon_input" or mutation.startswith("foreign")

    check()
