"""Any graph computes the same with RMSNorms, and with weights and biases folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from normswap.io.load import model_from_onnx
from normswap.model import Model
from normswap.passes import rms_norm
from normswap.passes.algebra import rules
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.spread import Norms
from normswap.passes.base import Pass, PassResult
from normswap.passes.fold_affine import FoldAffine
from normswap.passes.rms_norm import RmsNorm
from tests.effort import examples_of, thorough
from tests.passes.fold_sketch import Case
from tests.passes.norm_checks import check_exact
from tests.passes.norm_graphs import stream_graphs
from tests.passes.test_fold_random import FIXED, SLOW


def _model(case: Case) -> Model:
    return model_from_onnx(ir.serde.deserialize_model(case.proto), "random")


def _check(case: Case, rewrite: Pass) -> PassResult:
    """The same function, and nothing more to be done."""
    result = check_exact(_model(case), rewrite, case.feeds())
    assert not rewrite(result.model).modified
    return result


@settings(max_examples=examples_of(15, 100), suppress_health_check=SLOW, deadline=None)
@given(stream_graphs())
def test_rms_norms_compute_the_same(case: Case) -> None:
    _check(case, RmsNorm())


@settings(max_examples=examples_of(15, 100), suppress_health_check=SLOW, deadline=None)
@given(stream_graphs())
def test_folded_norms_compute_the_same(case: Case) -> None:
    _check(case, FoldAffine())


@thorough
def test_the_graphs_have_what_the_rules_are_about() -> None:
    done: Counter[str] = Counter()
    reasons: list[str] = []

    @settings(FIXED, max_examples=40)
    @given(stream_graphs())
    def tally(case: Case) -> None:
        result = RmsNorm()(_model(case))
        done.update(site.spelling for site in result.done)
        reasons.extend([*(why for _, why in result.skipped), *result.notes])

    tally()
    assert set(done) == {"op", "decomposed"}
    assert done.total() > 0.2 * (done.total() + len(reasons))
    for word in ("output of the model", "read elsewhere", "computes it", "several axes",
                 "channels whole", "a mean is subtracted", "keeps its weight"):  # fmt: skip
        assert any(word in reason for reason in reasons), word


# -- passes that are wrong in one thing, which the check has to notice --------------------------


def _uncentred(size: int, axis: int, rank: int) -> ChannelMap:
    return ChannelMap.along(np.eye(size), np.zeros(size), axis, rank)


def _of_half_the_channels(size: int, axis: int, rank: int) -> ChannelMap:
    wrong = np.eye(size)
    wrong[: size // 2, : size // 2] -= 2 / size
    return ChannelMap.along(wrong, np.zeros(size), axis, rank)


MUTANTS: dict[str, tuple[list[Any], str, Callable[..., Any]]] = {
    "means_that_stay": ([rules, rms_norm], "mean_subtraction", _uncentred),
    "half_the_channels": ([rules, rms_norm], "mean_subtraction", _of_half_the_channels),
    "readers_that_see_the_mean": ([Norms], "do_not_see", lambda *_: True),
    "no_mean_behind_a_norm": ([rms_norm._Swap], "_subtract_mean", lambda *_: None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_pass_is_noticed(mutant: str) -> None:
    @settings(FIXED, max_examples=50)
    @given(stream_graphs())
    def check(case: Case) -> None:
        check_exact(_model(case), RmsNorm(), case.feeds())

    places, name, wrong = MUTANTS[mutant]
    with ExitStack() as patches:
        for place in places:
            patches.enter_context(mock.patch.object(place, name, wrong))
        with pytest.raises(AssertionError, match="is off by"):
            check()
