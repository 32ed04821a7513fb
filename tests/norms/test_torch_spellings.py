"""Random spellings and near-misses in torch, captured by torch.export."""

from __future__ import annotations

import pytest
from hypothesis import given

import normswap
from normswap.norms import locate
from tests.norms.spelling_checks import (
    aliases,
    check_fusion,
    check_rejection,
    check_site,
    examples,
)
from tests.norms.spelling_plan import ORDERS
from tests.norms.torch_near_misses import MUTATIONS as TORCH_MUTATIONS
from tests.norms.torch_near_misses import torch_near_misses
from tests.norms.torch_spellings import TorchCase, TorchPlan, fitted, torch_spellings, written


def _check_location(case: TorchCase) -> None:
    model = normswap.load(case.module, example_inputs=case.inputs)
    (site,), (truth,) = locate(model.graph).sites, case.truths
    assert site.kind in aliases(truth, len(model.graph.value(site.input).shape or ()))
    if site.kind == truth.kind:
        check_site(site, truth)


@examples(10, thorough=100)
@given(torch_spellings())
def test_locates_norms_in_torch(case: TorchCase) -> None:
    _check_location(case)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number_how", ["python", 1])
def test_locates_batch_norms_of_numbers_in_torch(order: str, number_how: str | int) -> None:
    for numbers in (("gamma",), ("gamma", "beta"), ("gamma", "beta", "variance")):
        plan = TorchPlan("batch_norm", order=order, numbers=numbers, number_how=number_how)
        _check_location(written(fitted(plan)))


# Without a GELU behind it: torch's is up to four times as accurate in one layout as in another.
@examples(10, thorough=30)
@given(torch_spellings(half=(False,), operator=(False,), after=("none", "linear")))
def test_a_fused_torch_spelling_computes_the_same(case: TorchCase) -> None:
    check_fusion(normswap.load(case.module, example_inputs=case.inputs))


@pytest.mark.parametrize("mutation", TORCH_MUTATIONS)
def test_leaves_torch_near_misses_alone(mutation: str) -> None:
    @examples(2, thorough=4)
    @given(torch_near_misses(mutation))
    def check(case: TorchCase) -> None:
        model = normswap.load(case.module, example_inputs=case.inputs)
        check_rejection(locate(model.graph), case.has_root)

    check()
