"""Random spellings of norms are located with their constants, and rewritten exactly."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import onnx_ir as ir
import pytest
from hypothesis import given

import normswap
from normswap.norms import locate
from normswap.parity.exact import exact_contract
from normswap.parity.probes import Probe, draw_feeds
from tests.norms.lowered_spellings import (
    l2_spellings,
    lowered_spellings,
    two_norm_spellings,
    two_norms,
)
from tests.norms.spelling_checks import (
    check_fusion,
    check_location,
    check_site,
    examples,
    graph_of,
    norms_of,
)
from tests.norms.spelling_plan import NUMBERS, ORDERS, Plan, fitted
from tests.norms.spelling_truth import Case
from tests.norms.spellings import (
    delicate_spellings,
    moment_spellings,
    simple_spellings,
    spellings,
    written,
)

_RESHAPED = Plan(layout="channels", width=4, restore="reshape", epsilon=1e-3)
# With a variance so small in some rows that float32's 1e-3 tells from the decimal.
SMALL_VARIANCES = (_RESHAPED, replace(_RESHAPED, deviation="negative"))
# A probe holds a row or two of statistics; the second is a line in an InstanceNorm too.
_TWO_ROWS = Plan(kind="rms_norm", layout="last_two", rank=4, batch=1, tokens=2)
FEW_ROWS = (
    _TWO_ROWS,
    replace(_TWO_ROWS, affine="none"),
    Plan(kind="rms_norm", layout="last_two", tokens=7),
    Plan(layout="last_two", batch=1, tokens=20),
)


@pytest.mark.parametrize("plan", [*SMALL_VARIANCES, *FEW_ROWS], ids=str)
def test_locates_and_fuses_norms_whose_sizes_are_hard_to_prove(plan: Plan) -> None:
    case = written(plan)
    check_location(case)
    check_fusion(normswap.load(ir.serde.deserialize_model(copy.deepcopy(case.proto))))


@examples(25, thorough=200)
@given(simple_spellings())
def test_locates_layer_norms_over_the_last_axis(case: Case) -> None:
    check_location(case)


@examples(60, thorough=500)
@given(spellings(kind=("layer_norm",)))
def test_locates_layer_norms(case: Case) -> None:
    check_location(case)


@examples(30, thorough=300)
@given(spellings(kind=("rms_norm",)))
def test_locates_rms_norms(case: Case) -> None:
    check_location(case)


@examples(30, thorough=300)
@given(spellings(kind=("batch_norm",)))
def test_locates_batch_norms(case: Case) -> None:
    check_location(case)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("after", ["none", "scaled"])
def test_locates_batch_norms_of_numbers(order: str, after: str) -> None:
    """Whichever of gamma, beta, mean and variance are one number for all channels."""
    drawn = itertools.product(("both", "gamma", "beta", "none"), NUMBERS)
    plans = {
        fitted(
            Plan(
                kind="batch_norm", order=order, after=after, affine=affine, numbers=numbers,
                number_rank=(0, 1, 3)[i % 3], layout=("last", "channels")[i % 2],
                statistics=("random", "initial")[i // 2 % 2], gamma=("random", "ones")[i // 3 % 2],
            )
        ): None
        for i, (affine, numbers) in enumerate(drawn)
    }  # fmt: skip
    for plan in plans:
        check_location(written(plan))


@examples(25, thorough=200)
@given(lowered_spellings())
def test_locates_norms_by_way_of_other_operators(case: Case) -> None:
    check_location(case)


@examples(25, thorough=200)
@given(two_norm_spellings())
def test_two_norms_that_share_statistics_are_two_sites(case: Case) -> None:
    check_location(case)


@examples(25, thorough=200)
@given(moment_spellings())
def test_locates_layer_norms_by_moments(case: Case) -> None:
    check_location(case)


@examples(25, thorough=200)
@given(delicate_spellings())
def test_locates_norms_that_hold_up_to_float32(case: Case) -> None:
    """A mean by a float32 1 / C is a LayerNorm to all but float64's eyes."""
    check_location(case, rtol=1e-4)


@examples(30, thorough=100)
@given(l2_spellings())
def test_an_rms_norm_without_epsilon_is_one_or_nothing(case: Case) -> None:
    sites = norms_of(locate(graph_of(case)))
    assert len(sites) <= 1
    for site in sites:
        check_site(site, case.truth)


@examples(30, thorough=250)
@given(spellings() | lowered_spellings() | two_norm_spellings())
def test_a_fused_spelling_computes_the_same(case: Case) -> None:
    check_fusion(normswap.load(ir.serde.deserialize_model(copy.deepcopy(case.proto))))


@pytest.mark.parametrize(
    "plan",
    [
        Plan(order="scale_first", deviation="second_mean", seed=33993),
        Plan(variance="unbiased", seed=35267),
    ],
    ids=str,
)
def test_fused_norms_of_subnormal_rows_compute_the_same(plan: Plan) -> None:
    """A mean of five subnormal numbers is rounded to their spacing, which 1 / sqrt(epsilon)
    magnifies; these rows' means are exact in the spelling by luck, and not in the operator."""
    plan = replace(
        plan, rank=2, batch=1, width=5, opset=18, mean="sum_div", epsilon=9e-11, affine="gamma",
        source="relu",
    )  # fmt: skip
    proto = two_norms(fitted(plan), "root").proto
    model = normswap.load(ir.serde.deserialize_model(copy.deepcopy(proto)))
    fused = normswap.swap(model, to="fused").model
    probes = [Probe("subnormal", draw_feeds(model, "subnormal", 8, [5, draw])) for draw in range(3)]
    report = exact_contract(model, fused, probes)
    assert not any(finding.kind == "error_bound" for finding in report.findings)


@examples(25, thorough=50)
@given(simple_spellings())
def test_a_fused_layer_norm_over_the_last_axis_computes_the_same(case: Case) -> None:
    model = normswap.load(ir.serde.deserialize_model(copy.deepcopy(case.proto)))
    result = normswap.swap(model, to="fused")
    assert len(result.done) == 1
    report = normswap.validate(model, result.model)
    assert report.passed, report
