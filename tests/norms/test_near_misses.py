"""Random near-misses are left alone, and the reason is told."""

from __future__ import annotations

import pytest
from hypothesis import given

from normswap.norms import locate
from tests.norms.near_misses import MUTATIONS, near_miss, near_misses
from tests.norms.spelling_checks import check_rejection, examples, graph_of
from tests.norms.spelling_plan import Plan
from tests.norms.spelling_truth import Case


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_leaves_near_misses_alone_and_says_why(mutation: str) -> None:
    @examples(6, thorough=25)
    @given(near_misses(mutation))
    def check(case: Case) -> None:
        check_rejection(locate(graph_of(case)), case.has_root)

    check()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_leaves_near_misses_of_a_few_rows_alone(mutation: str) -> None:
    """Over all but a batch of one, where a row or two would fit any weight and bias."""
    for kind in ("layer_norm", "rms_norm"):
        case = near_miss(Plan(kind=kind, layout="last_two", batch=1, tokens=20), mutation)
        check_rejection(locate(graph_of(case)), case.has_root)
