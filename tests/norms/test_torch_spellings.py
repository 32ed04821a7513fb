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
from tests.norms.torch_near_misses import MUTATIONS as TORCH_MUTATIONS
from tests.norms.torch_near_misses import torch_near_misses
from tests.norms.torch_spellings import TorchCase, torch_spellings


@examples(50, thorough=100)
@given(torch_spellings())
def test_locates_norms_in_torch(case: TorchCase) -> None:
    model = normswap.load(case.module, example_inputs=case.inputs)
    (site,), (truth,) = locate(model.graph).sites, case.truths
    assert site.kind in aliases(truth, len(model.graph.value(site.input).shape or ()))
    if site.kind == truth.kind:
        check_site(site, truth)


# Without a GELU behind it: torch's is up to four times as accurate in one layout as in another.
@examples(30)
@given(torch_spellings(half=(False,), operator=(False,), after=("none", "linear")))
def test_a_fused_torch_spelling_computes_the_same(case: TorchCase) -> None:
    check_fusion(normswap.load(case.module, example_inputs=case.inputs))


@pytest.mark.parametrize("mutation", TORCH_MUTATIONS)
def test_leaves_torch_near_misses_alone(mutation: str) -> None:
    @examples(4)
    @given(torch_near_misses(mutation))
    def check(case: TorchCase) -> None:
        model = normswap.load(case.module, example_inputs=case.inputs)
        check_rejection(locate(model.graph), case.has_root)

    check()
