"""What exact passes do is certified, on models that others wrote and on random graphs.

By default a few of them, with NORMSWAP_ZOO=all all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings

import normswap as ns
from normswap.errors import NormswapError
from normswap.field.certificate import Certificate
from normswap.model import Model
from normswap.parity.certified import certified, certified_pass
from normswap.passes.base import PassResult
from tests.effort import ALL, examples_of
from tests.passes.fold_graphs import Case, fold_graphs
from tests.passes.test_fold_random import SLOW, _model
from tests.zoo.exports import FX, NotExportable, model_as
from tests.zoo.models import FAMILIES

ONNX = "torchscript-14"
Rewrite = Callable[[Model], PassResult]
PASSES: dict[str, Rewrite] = {
    "fused": lambda model: ns.swap(model, to="fused", certify=True),
    "rmsnorm": lambda model: ns.swap(model, to="rmsnorm", certify=True),
    "fold_affine": lambda model: ns.fold_affine(model, certify=True),
    "fold": lambda model: ns.fold(model, certify=True),
    "product": lambda model: ns.swap(model, to="product", certify=True),
}
SOME = [
    ("spelled_vit", FX, "rmsnorm"),  # P goes into a convolution, tokens and positions; C is no 2^k
    ("hf_clip", ONNX, "fused"),
    ("hf_swin", FX, "fold_affine"),  # through windows and a pool
    ("timm_convnext", FX, "fold"),
    ("hf_vit", ONNX, "rmsnorm"),
]
CASES = [(n, f, p) for n in FAMILIES for f in (FX, ONNX) for p in PASSES] if ALL else SOME


@pytest.mark.parametrize(("name", "form", "how"), CASES)
def test_exact_passes_are_certified(name: str, form: str, how: str) -> None:
    try:
        model = model_as(name, form)
    except NotExportable as error:
        pytest.skip(str(error))
    result = PASSES[how](model)
    if not result.modified:
        assert ALL
        return
    found = result.certificate
    assert found is not None
    if how == "product" and form == FX and not found.certified:
        assert "epsilon'" in found.reason  # it is a float64 there
    else:
        assert found.certified, found.reason
        assert found.error <= 1e-12


@pytest.mark.parametrize("form", [FX, ONNX] if ALL else [ONNX])
def test_powers_of_two_in_weights_are_certified(form: str) -> None:
    """They are not rounded, so that the two files by themselves are proven the same as well."""
    model = model_as("hf_vit", form)
    images = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)
    tight = ns.Rescale(headroom=16)  # nothing may be larger than 1
    result = ns.swap(model, tight, data=images, certify=True)
    assert len(result.done) == 5
    assert result.certificate is not None
    assert result.certificate.certified, result.certificate.reason
    assert certified(model, result.model).certified


# What dialects round, if anything, and where the reason says so.
ROUNDED = {
    "lp": "the square of",
    "scaled": "the square of",
    "product": "",
    "group": "",
    "instance": "",
}


@pytest.mark.parametrize(("to", "constant"), ROUNDED.items())
def test_dialects_are_certified_unless_they_round_a_root(to: str, constant: str) -> None:
    result = ns.swap(model_as("hf_vit", ONNX), to=to, certify=True)
    found = result.certificate
    assert found is not None
    assert found.certified == (not constant), found.reason
    assert constant in found.reason


@settings(
    max_examples=examples_of(8, 500),
    suppress_health_check=SLOW,
    deadline=None,
    phases=[Phase.generate],
)
@given(fold_graphs())
def test_folds_of_random_graphs_are_certified(case: Case) -> None:
    result = ns.fold(_model(case), certify=True)
    if result.certificate is not None and not _is_beyond(result.certificate):
        assert result.certificate.certified, result.certificate.reason


def _is_beyond(found: Certificate) -> bool:
    """Graphs that no float64 evaluation of a point can decide either: a certificate says so."""
    return "Relu" in found.uninterpreted or "decides" in found.reason


def test_a_rule_that_is_wrong_is_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """P = I - 1 1^T / (C + 1), to which float64 tests at small means are the least sensitive."""
    model = model_as("hf_vit", FX)
    right = ns.swap(model, to="rmsnorm").model

    def rewrite(copy: Model) -> Model:
        return ns.swap(copy, to="rmsnorm").model

    assert certified_pass(model, right, rewrite).certified
    from normswap.passes.algebra import rules

    true_ratio = rules.ratio
    monkeypatch.setattr(rules, "ratio", lambda number, count: true_ratio(number, count + 1))
    wrong = ns.swap(model, to="rmsnorm")
    found = certified_pass(model, wrong.model, rewrite)
    assert not found.certified
    assert "differs" in found.reason


def test_a_result_that_the_pass_did_not_give_is_not_certified() -> None:
    model = model_as("hf_vit", FX)
    result = ns.fold_affine(model).model
    weights = [v for v in result.graph.values() if v.is_constant and v.producer is None]
    weight = next(v for v in weights if v.name.endswith("mlp.fc1.weight"))
    array = np.array(result.graph.constant(weight))
    array[0, 0] = np.nextafter(array[0, 0], np.inf)
    result.graph.replace_constant(weight, array)
    found = certified_pass(model, result, lambda copy: ns.fold_affine(copy).model)
    assert not found.certified
    assert "other numbers" in found.reason


def test_the_decisions_of_a_pass_are_the_same_over_a_field() -> None:
    model = model_as("hf_vit", FX)
    plain, proven = ns.fold_affine(model), ns.fold_affine(model, certify=True)
    assert [s.name for s in plain.done] == [s.name for s in proven.done]
    assert plain.model.graph.carried is None
    assert proven.model.graph.carried is None
    assert replace(proven, certificate=None).notes == plain.notes


def test_another_function_is_not_to_be_certified() -> None:
    with pytest.raises(NormswapError, match="nothing can certify"):
        ns.swap(model_as("hf_vit", FX), to="affine", data="nowhere", certify=True)
    model = model_as("hf_vit", FX)
    with pytest.raises(NormswapError, match="exact contract"):
        ns.validate(model, model, contract="approximate", certify=True)
