"""The generators of spellings and near-misses are what they claim: checked without the locator."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given

from tests.norms.lowered_spellings import l2_spellings, lowered_spellings, two_norm_spellings
from tests.norms.near_misses import MUTATIONS, near_misses
from tests.norms.spelling_checks import examples
from tests.norms.spelling_proof import DRAWS, SCALES, Evaluated, formula, norms_between
from tests.norms.spelling_proof import norms_inside as search
from tests.norms.spelling_truth import Array, Case
from tests.norms.spellings import (
    delicate_spellings,
    moment_spellings,
    simple_spellings,
    spellings,
)
from tests.norms.torch_near_misses import MUTATIONS as TORCH_MUTATIONS
from tests.norms.torch_near_misses import torch_near_misses
from tests.norms.torch_spellings import Norm, TorchCase, torch_spellings

STRATEGIES = {
    "simple": simple_spellings(),
    "any": spellings(),
    "lowered": lowered_spellings(),
    "two": two_norm_spellings(),
    "moments": moment_spellings(),
    "l2": l2_spellings(),
}


def _check_truth(case: Case, tolerance: float) -> None:
    onnx.checker.check_model(case.proto, full_check=True)
    evaluated = Evaluated(case.proto)
    for draw, (scale, offset) in enumerate([(1e4, 1.0), (1.0, 0.5), (1e-3, 0.0), (1e-8, 0.0)]):
        values = evaluated(evaluated.feeds(scale, draw, offset))
        for truth in case.truths:
            expected = formula(truth, values[truth.input])
            error = np.abs(expected - values[truth.output]).max()
            largest = 1.0 if truth.gamma is None else np.abs(truth.gamma).max()
            assert error <= tolerance * max(np.abs(expected).max(), largest)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_spelling_is_the_norm_it_claims_to_be(name: str) -> None:
    @examples(30, thorough=60)
    @given(STRATEGIES[name])
    def check(case: Case) -> None:
        _check_truth(case, 1e-11)

    check()


@examples(30, thorough=60)
@given(delicate_spellings())
def test_a_delicate_spelling_is_its_norm_up_to_float32(case: Case) -> None:
    _check_truth(case, 1e-5)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_near_miss_holds_no_norm(mutation: str) -> None:
    @examples(2, thorough=4)
    @given(near_misses(mutation))
    def check(case: Case) -> None:
        onnx.checker.check_model(case.proto, full_check=True)
        assert not search(Evaluated(case.proto))

    check()


@examples(25, thorough=50)
@given(spellings(kind=("layer_norm", "rms_norm"), source=("graph", "add")))
def test_the_search_for_norms_finds_those_that_are_there(case: Case) -> None:
    truth = case.truth
    found = search(Evaluated(case.proto))
    assert (truth.kind, truth.input, truth.output, truth.axes) in found


def _in_double(module: torch.nn.Module) -> Norm:
    double = copy.deepcopy(module).double()
    assert isinstance(double, Norm)
    double.wide = torch.float64
    return double


def _torch_values(case: TorchCase, scale: float) -> tuple[Array, Array]:
    """x and the norm's output for several draws."""
    module, pairs = _in_double(case.module), []
    random = torch.Generator().manual_seed(1)
    for _ in range(DRAWS):
        inputs = [
            scale * (torch.randn(i.shape, generator=random, dtype=torch.float64) + 0.5)
            for i in case.inputs
        ]
        with torch.no_grad():
            pairs.append((inputs[0].numpy(), module.normalised(*inputs).numpy()))
    x, y = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return x, y


@examples(30, thorough=60)
@given(torch_spellings())
def test_a_torch_spelling_is_the_norm_it_claims_to_be(case: TorchCase) -> None:
    (truth,) = case.truths
    for scale in (1e4, 1.0, 1e-3, 1e-8):
        for x, y in zip(*_torch_values(case, scale), strict=True):
            expected = formula(truth, x)
            assert np.abs(expected - y).max() <= 1e-11 * max(np.abs(expected).max(), 1)


@pytest.mark.parametrize("mutation", TORCH_MUTATIONS)
def test_a_torch_near_miss_is_no_norm(mutation: str) -> None:
    @examples(2, thorough=4)
    @given(torch_near_misses(mutation))
    def check(case: TorchCase) -> None:
        assert not norms_between([_torch_values(case, scale) for scale in SCALES])

    check()
