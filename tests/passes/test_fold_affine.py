"""gamma and beta of norms go into their readers: on FX and on ONNX, as one operator or spelled."""

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
from normswap.demo.spelled_out import spell_out
from normswap.passes.base import PassResult
from normswap.passes.fold_affine import FoldAffine
from tests.passes.fold_checks import KINDS, captured
from tests.passes.norm_checks import check_exact, operators, vectors

C, N = 4, 6
TOKENS = (2, N, C)
Body = Callable[["Net", torch.Tensor], Any]


class Net(nn.Module):
    """``body`` with layers to choose from."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.norm, self.norm2, self.wide = nn.LayerNorm(C), nn.LayerNorm(C), nn.LayerNorm((N, C))
        self.rms = nn.RMSNorm(C, eps=1e-6)
        self.plain = nn.LayerNorm(C, elementwise_affine=False)
        self.lin, self.head = nn.Linear(C, C), nn.Linear(C, 5)
        self.tokens = nn.Linear(N, 3)
        self.without = nn.Linear(C, 5, bias=False)
        self.conv, self.padded = nn.Conv2d(C, 5, 2), nn.Conv2d(C, 5, 3, padding=1)
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        self.norm2.weight.data[0] = 0  # a channel that is switched off

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)

    def image(self, y: torch.Tensor) -> torch.Tensor:
        return y.reshape(-1, 2, 3, C).permute(0, 3, 1, 2)


def _model(kind: str, body: Body, spelled: bool = False) -> ns.Model:
    module = spell_out(Net(body)) if spelled else Net(body)
    return captured(module, torch.randn(TOKENS), kind)


def _folded(model: ns.Model) -> PassResult:
    return check_exact(model, FoldAffine(), model.examples)


FOLDED: dict[str, Body] = {
    "a_linear_layer": lambda m, x: m.head(m.norm(x)),
    "two_and_one_without_a_bias": lambda m, x: (y := m.norm(x), m.head(y) * m.without(y))[1],
    "a_channel_that_is_switched_off": lambda m, x: m.head(m.norm2(x)),
    "one_token": lambda m, x: m.head(m.norm(x)[:, 0]),
    "the_mean_of_all_tokens": lambda m, x: m.head(m.norm(x).mean(1)),
    "a_convolution": lambda m, x: m.conv(m.image(m.norm(x))),
    "an_rms_norm": lambda m, x: m.head(m.rms(x)),
    "two_norms_one_behind_the_other": lambda m, x: m.head(m.norm2(m.lin(m.norm(x)))),
}


@pytest.mark.parametrize("spelled", [False, True], ids=["op", "spelled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FOLDED)
def test_readers_take_over_weight_and_bias(name: str, kind: str, spelled: bool) -> None:
    if name == "an_rms_norm" and kind != "fx":
        pytest.skip("TorchScript's exporter knows no rms_norm")
    model = _model(kind, FOLDED[name], spelled)
    result = _folded(model)
    assert result.done
    assert not result.skipped
    for site in ns.locate(result.model):
        assert site.spelling == "op"
        assert site.weight is None or np.all(site.weight == 1)
        assert site.bias is None
    assert vectors(result.model.graph).total() == 0
    again = FoldAffine()(result.model)
    assert {why for _, why in again.skipped} == {"it has neither weight nor bias"}


REFUSED: dict[str, tuple[Body, str]] = {
    "a_residual_sum": (
        lambda m, x: (y := m.norm(x), m.head(y + torch.tanh(m.lin(y))))[1], "adds to it",
    ),
    "a_nonlinearity_beside_a_linear_layer": (
        lambda m, x: (y := m.norm(x), m.lin(y) + F.relu(y))[1], "Relu",
    ),
    "an_output": (lambda m, x: (y := m.norm(x), m.head(y)), "output of the model"),
    "a_product_of_two_values": (lambda m, x: m.norm(x) @ m.norm(x).transpose(1, 2), "MatMul"),
    "another_norm": (lambda m, x: m.head(m.plain(m.norm(x))), "reads it|neither weight nor bias"),
    "a_convolution_that_pads": (lambda m, x: m.padded(m.image(m.norm(x))), "pads with zeros"),
    "tokens_as_channels": (
        lambda m, x: m.tokens(m.norm(x).transpose(1, 2)), "another axis",
    ),
    "several_axes": (lambda m, x: m.head(m.wide(x)), "several axes"),
    "nothing_to_fold": (lambda m, x: m.head(m.plain(x)), "neither weight nor bias"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_a_reason_and_changes_nothing(name: str, kind: str) -> None:
    body, reason = REFUSED[name]
    result = _folded(_model(kind, body))
    assert not result.modified
    assert result.skipped
    for _, why in result.skipped:
        assert re.search(reason, why), why


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_stays_does_not_keep_another_from_folding(kind: str) -> None:
    model = _model(kind, lambda m, x: torch.tanh(m.norm2(m.lin(m.norm(x)))), spelled=True)
    result = _folded(model)
    assert [site.name for site in result.done] == ["norm"]
    assert [site.name for site, _ in result.skipped] == ["norm2"]
    spelled = [s.name for s in ns.locate(result.model) if s.spelling == "decomposed"]
    assert spelled == ["norm2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_is_called_elsewhere_too_keeps_its_weight_there(kind: str) -> None:
    model = _model(kind, lambda m, x: (m.lin(m.norm(x)), m.lin(F.relu(x))))
    assert len(_folded(model).done) == 1


def test_norms_of_one_width_share_their_ones() -> None:
    """ONNX's operator cannot do without a weight."""

    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.head(m.norm2(torch.tanh(m.lin(m.norm(x)))))

    graph = _folded(_model("torchscript", body)).model.graph
    scales = {node.inputs[1] for node in graph.nodes if node.op == "LayerNormalization"}
    assert operators(graph)["LayerNormalization"] == 2
    assert len(scales) == 1
