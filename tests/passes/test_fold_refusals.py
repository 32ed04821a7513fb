"""What a fold refuses, and which copies it leaves alone, from the same modules on FX and on ONNX.

``test_fold.py`` has the refusals that only a graph written by hand shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns
from tests.passes.fold_checks import KINDS, captured, check_fold, fingerprint, randomise_norms

C, N = 4, 6
TOKENS = (2, N, C)
SQUARE = (2, C, C)  # as many tokens as channels
IMAGE = (2, C, 6, 6)


class Net(nn.Module):
    """``body`` with layers to choose from; ``norm`` is over the last axis of tokens."""

    def __init__(self, body: Callable[[Net, torch.Tensor], Any], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.bn, self.other = nn.BatchNorm1d(C, **options), nn.BatchNorm1d(C, **options)
        self.bn2d = nn.BatchNorm2d(C, **options)
        self.lin, self.lin2, self.head = (nn.Linear(C, C) for _ in range(3))
        self.padded = nn.Conv2d(C, 5, 3, padding=1)
        self.table = nn.Embedding(7, C)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def _feeds(model: ns.Model) -> dict[str, np.ndarray]:
    return dict(model.examples)


def _model(kind: str, body: Callable[[Net, torch.Tensor], Any], shape: Any, **o: Any) -> ns.Model:
    return captured(Net(body, **o), torch.randn(shape), kind)


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "wrong_axis_though_sizes_agree": (
        lambda m, x: m.head(m.bn(m.lin(x))), SQUARE, "axis",
    ),
    "wrong_axis_of_tokens_behind_a_nonlinearity": (
        lambda m, x: m.head(m.bn(F.relu(x))), SQUARE, "axis",
    ),
    "an_output_of_the_model": (
        lambda m, x: m.norm(F.relu(x)), TOKENS, "output of the model",
    ),
    "an_output_that_a_linear_layer_reads_too": (
        lambda m, x: (y := m.norm(F.relu(x)), m.head(y)), TOKENS, "output of the model",
    ),
    "nothing_but_nonlinearities": (
        lambda m, x: F.gelu(m.norm(F.relu(x))), TOKENS, "Gelu",
    ),
    "a_softmax_over_the_channels": (
        lambda m, x: F.softmax(m.norm(F.relu(x)), -1), TOKENS, "Softmax",
    ),
    "a_product_of_two_values": (
        lambda m, x: m.norm(F.relu(x)) * torch.sigmoid(x), TOKENS, "Mul",
    ),
    "one_reader_of_two": (
        lambda m, x: (y := m.norm(F.relu(x)), m.head(y) + F.relu(y))[1], TOKENS, "Relu",
    ),
    "what_it_reads_is_an_output": (
        lambda m, x: (y := m.lin(x), F.relu(m.norm(y))), TOKENS, "output|elsewhere",
    ),
    "what_it_reads_feeds_a_nonlinearity": (
        lambda m, x: (y := m.lin(x), F.relu(m.norm(y)) + F.relu(y))[1], TOKENS, "elsewhere",
    ),
    "the_input_of_the_model": (
        lambda m, x: F.relu(m.norm(x)), TOKENS, "input of the model",
    ),
    "channels_that_are_mixed_by_a_reshape": (
        lambda m, x: m.head(m.norm(F.relu(x)).reshape(-1, C, N).transpose(1, 2)), TOKENS,
        "channels|axis",
    ),
    "channels_that_are_averaged": (
        lambda m, x: m.norm(F.relu(x)).mean(-1), TOKENS, "channels|axis",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_a_reason_and_changes_nothing(name: str, kind: str) -> None:
    body, shape, reason = REFUSED[name]
    model = _model(kind, body, shape)
    before = fingerprint(model.graph)
    result = ns.fold(model)
    assert not result.modified
    assert result.model is model
    assert fingerprint(model.graph) == before
    ((site, why),) = result.skipped
    assert site.kind == "batch_norm"
    assert re.search(reason, why, re.IGNORECASE), why


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_does_not_keep_another_from_folding(kind: str) -> None:
    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return F.relu(m.norm(torch.tanh(m.head(m.norm(torch.tanh(x))))))

    model = _model(kind, body, TOKENS)
    result = check_fold(model, _feeds(model))
    ((skipped, why),) = result.skipped
    (done,) = result.done
    order = [site.name for site in ns.locate(model)]
    assert [done.name, skipped.name] == order
    assert "Relu" in why


def test_a_captured_norm_in_training_mode_is_told_of() -> None:
    """One that was captured while training, and one that never keeps statistics."""
    x = torch.randn(TOKENS)
    net = Net(lambda m, x: m.head(m.norm(F.relu(x))))
    training = ns.load(torch.export.export(net.train(), (x,)))
    without = _model("fx", net.body, TOKENS, track_running_stats=False)
    for model in (training, without):
        result = ns.fold(model)
        assert not result.modified
        told = [why for _, why in result.skipped] + result.notes
        assert any(re.search(r"training|batch's own", why) for why in told), told


SHARED: dict[str, tuple[Any, str]] = {
    "a_linear_layer_called_behind_the_norm_and_elsewhere": (
        lambda m, x: (h := F.relu(x), m.lin(m.norm(h)), m.lin(h))[1:], "lin.weight",
    ),
    "a_linear_layer_called_before_the_norm_and_elsewhere": (
        lambda m, x: (F.relu(m.norm(m.lin(x))), m.lin(F.tanh(x))), "lin.weight",
    ),
    "a_linear_layer_called_twice_in_a_row": (
        lambda m, x: m.lin(F.relu(m.lin(m.norm(F.relu(x))))), "lin.weight",
    ),
    "a_head_tied_to_the_table_of_embeddings": (
        lambda m, x: F.linear(
            m.norm(F.relu(m.table((x > 0).long().sum(-1)) + x)), m.table.weight
        ),
        "table.weight",
    ),
    "a_bias_that_is_added_elsewhere_too": (
        lambda m, x: (h := F.relu(x), F.relu(h + m.lin.bias), m.lin(m.norm(h)))[1:], "lin.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHARED)
def test_another_user_of_a_weight_keeps_its_own(name: str, kind: str) -> None:
    """The norm folds, and the weight as it was is still there for who else reads it."""
    body, weight = SHARED[name]
    module = Net(body)
    model = captured(module, torch.randn(TOKENS), kind)
    result = check_fold(model, _feeds(model))
    assert len(result.done) == 1
    assert not result.skipped
    kept = module.get_parameter(weight).detach().numpy()
    graph = result.model.graph
    arrays = [graph.constant(v) for v in graph.values() if v.is_constant and v.producer is None]
    shapes = (kept.shape, kept.T.shape)
    alike = [a for a in arrays if a is not None and a.shape in shapes]
    assert any(np.array_equal(a, kept) or np.array_equal(a, kept.T) for a in alike)
    assert len(alike) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_called_twice_folds_where_it_can(kind: str) -> None:
    def body(m: Net, x: torch.Tensor) -> Any:
        return m.head(m.norm(F.relu(x))), F.relu(m.norm(x + 1))

    model = _model(kind, body, TOKENS)
    result = check_fold(model, _feeds(model))
    assert len(result.done) == 1
    assert len(result.skipped) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("down", [True, False])
def test_a_norm_without_parameters_folds(down: bool, kind: str) -> None:
    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.head(m.norm(F.relu(x))) if down else F.relu(m.norm(m.lin(x)))

    model = _model(kind, body, TOKENS, affine=False)
    result = check_fold(model, _feeds(model))
    assert len(result.done) == 1
    assert not result.skipped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("only_scales", [True, False])
def test_a_padded_convolution_takes_the_scale_alone(only_scales: bool, kind: str) -> None:
    """Zeros are padded in behind the shift, so it stays, as one Add, and is told of."""
    module = Net(lambda m, x: m.padded(m.bn2d(F.relu(x))))
    randomise_norms(module)
    if only_scales:
        nn.init.zeros_(module.bn2d.bias)
        module.bn2d.running_mean.zero_()
    model = captured(module, torch.randn(IMAGE), kind, randomise=False)
    result = check_fold(model, _feeds(model))
    assert len(result.done) == 1
    adds = [node for node in result.model.graph.nodes if node.op == "Add"]
    assert len(adds) == (0 if only_scales else 1)
    assert any("shift" in note for note in result.notes) != only_scales


class Integers(nn.Module):
    """A sum with integers, as torch allows it, in front of a norm."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.lin, self.bn = nn.Linear(C, C, bias=biased), nn.BatchNorm1d(C)
        self.register_buffer("places", torch.arange(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x) + self.places
        return torch.tanh(self.bn(y.flatten(0, 1)).reshape_as(x))


@pytest.mark.parametrize("biased", [True, False])
def test_integers_take_up_a_scale_as_floats(biased: bool) -> None:
    torch.manual_seed(0)
    model = captured(Integers(biased), torch.randn(TOKENS), "fx")
    result = check_fold(model, _feeds(model))
    assert not result.skipped
    assert {value.dtype for value in result.model.graph.outputs} == {np.dtype(np.float64)}
