"""Which LayerNorms become RMSNorms and which do not, from the same modules on FX and on ONNX."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns
from normswap.errors import NormswapError
from normswap.lowering import lower
from normswap.passes.rms_norm import RmsNorm
from tests.passes.fold_checks import KINDS, captured
from tests.passes.norm_checks import check_exact, operators, vectors

C, N = 4, 6
TOKENS = (2, N, C)
IMAGE = (2, C, 6, 6)
Body = Callable[["Net", torch.Tensor], Any]


class Net(nn.Module):
    """``body`` with layers to choose from."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.norm, self.norm2, self.last = (nn.LayerNorm(C) for _ in range(3))
        self.wide = nn.LayerNorm((N, C))
        self.lin, self.lin2, self.lin3, self.head = (nn.Linear(C, C) for _ in range(4))
        self.conv = nn.Conv2d(C, C, 1)
        self.depthwise = nn.Conv2d(C, C, 3, groups=C)
        self.scale = nn.Parameter(torch.randn(C))
        self.token, self.places = (
            nn.Parameter(torch.randn(1, 1, C)),
            nn.Parameter(torch.randn(N, C)),
        )
        for parameter in self.parameters():  # gamma and beta that do something
            parameter.data += 0.3 * torch.randn_like(parameter)

    def block(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        return x + self.lin2(F.relu(self.lin3(norm(x))))

    def stream(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(self.lin(x), self.norm), self.norm2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def _model(kind: str, body: Body, shape: tuple[int, ...] = TOKENS) -> ns.Model:
    return captured(Net(body), torch.randn(shape), kind)


def _swapped(model: ns.Model) -> ns.passes.base.PassResult:
    return check_exact(model, RmsNorm(), model.examples)


def _class_token(m: Net, x: torch.Tensor) -> torch.Tensor:
    token = m.token.expand(x.shape[0], -1, -1)
    return torch.cat([token, m.lin(x)], 1)


SWAPPED: dict[str, tuple[Body, tuple[int, ...], int]] = {
    "a_stream": (lambda m, x: m.head(m.last(m.stream(x))), TOKENS, 3),
    "positions_that_are_added": (lambda m, x: m.head(m.last(m.stream(x) + m.places)), TOKENS, 3),
    "a_class_token_that_alone_is_read": (
        lambda m, x: m.head(m.last(m.block(_class_token(m, x), m.norm)[:, 0])), TOKENS, 2,
    ),
    "tokens_that_are_averaged": (lambda m, x: m.head(m.last(m.stream(x).mean(1))), TOKENS, 3),
    "tokens_that_are_rolled_and_padded": (
        lambda m, x: m.head(m.last(F.pad(m.stream(x).roll(2, 1), (0, 0, 1, 2)))), TOKENS, 3,
    ),
    "a_scale_and_a_sign_for_all_channels": (
        lambda m, x: m.head(m.last(-0.5 * m.stream(x) - m.lin3(x))), TOKENS, 3,
    ),
    "a_layer_scale": (
        lambda m, x: (y := m.lin(x), m.head(m.last(y + m.scale * m.lin2(m.norm(y)))))[1], TOKENS, 2,
    ),
    "heads_that_are_normed": (
        lambda m, x: m.head(m.norm2(m.lin(x).reshape(-1, N, 1, C)).flatten(2)), TOKENS, 1,
    ),
    "channels_first": (
        lambda m, x: m.head(m.norm(m.conv(x).permute(0, 2, 3, 1))), IMAGE, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SWAPPED)
def test_every_norm_of_a_stream_is_swapped_and_nothing_is_left_of_it(name: str, kind: str) -> None:
    body, shape, count = SWAPPED[name]
    model = _model(kind, body, shape)
    result = _swapped(model)
    assert len(result.done) == count
    assert not result.skipped
    assert not result.notes
    before, after = operators(model.graph), operators(result.model.graph)
    assert after["LayerNormalization"] == 0
    assert after["RMSNormalization"] == count
    assert all(after[op] <= before[op] for op in ("Add", "Sub", "Mul", "ReduceMean"))
    assert vectors(result.model.graph)["Mul"] == 0
    for site in ns.locate(result.model):
        assert site.weight is None or np.all(site.weight == 1)


REFUSED: dict[str, tuple[Body, tuple[int, ...], str]] = {
    "a_stream_that_is_an_output": (
        lambda m, x: (y := m.lin(x), m.head(m.norm(y)))[::-1], TOKENS, "output of the model",
    ),
    "a_linear_layer_that_reads_the_stream": (
        lambda m, x: (y := m.lin(x), m.head(m.norm(y)) + m.lin2(y))[1], TOKENS, "read elsewhere",
    ),
    "a_nonlinearity_that_reads_the_stream": (
        lambda m, x: (y := m.lin(x), m.head(m.norm(y)) + F.gelu(y))[1], TOKENS, "Gelu|Erf|Div",
    ),
    "a_writer_that_is_not_linear": (lambda m, x: m.head(m.norm(F.relu(m.lin(x)))), TOKENS, "Relu"),
    "the_input_of_the_model": (lambda m, x: m.head(m.norm(x)), TOKENS, "input of the model"),
    "post_norm": (
        lambda m, x: (y := m.norm(x + m.lin(x)), m.head(m.norm2(y + m.lin2(y))))[1], TOKENS,
        "read elsewhere|input of the model",
    ),
    "a_norm_over_more_than_channels": (
        lambda m, x: m.wide(m.lin(x)).sum(-1), TOKENS, "several axes",
    ),
    "another_norm_over_more_than_channels": (
        lambda m, x: (y := m.lin(x), m.head(m.norm(y)) + m.wide(y))[1], TOKENS,
        "LayerNorm|several axes|ReduceMean",
    ),
    "a_depthwise_convolution": (
        lambda m, x: m.head(m.norm(m.depthwise(x).permute(0, 2, 3, 1))), IMAGE, "groups",
    ),
    "two_layer_scales_of_one_value": (
        lambda m, x: (y := m.lin(x), m.head(m.norm(m.scale * y) + m.norm2(m.token * y)))[1], TOKENS,
        "read elsewhere",
    ),
    "a_norm_for_the_sake_of_one": (
        lambda m, x: (y := m.norm(F.relu(x)), m.head(m.norm2(y + m.lin(F.relu(x)))))[1], TOKENS,
        "for the sake of 1|Relu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_a_reason_and_changes_nothing(name: str, kind: str) -> None:
    body, shape, reason = REFUSED[name]
    result = _swapped(_model(kind, body, shape))
    assert not result.modified
    for _, why in result.skipped:
        assert re.search(reason, why), why


@pytest.mark.parametrize("kind", KINDS)
def test_behind_clips_first_norm_one_mean_is_subtracted(kind: str) -> None:
    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.head(m.last(m.block(m.block(m.norm(m.lin(x)), m.norm2), m.last)))

    model = _model(kind, body)
    result = _swapped(model)
    assert len(result.done) == 4
    before, after = operators(model.graph), operators(result.model.graph)
    assert after["LayerNormalization"] == 0
    assert after["ReduceMean"] - before["ReduceMean"] == after["Sub"] - before["Sub"] == 1
    assert vectors(result.model.graph)["Add"] == 1  # the first norm's beta
    assert any("a mean is subtracted" in note for note in result.notes)
    assert any("keeps its weight and bias" in note for note in result.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_that_was_not_asked_for_stays_on_the_stream(kind: str) -> None:
    model = _model(kind, lambda m, x: m.head(m.last(m.stream(x))))
    result = ns.swap(model, to="rmsnorm", sites="norm2")
    assert [site.name for site in result.done] == ["norm2"]
    kinds = {site.name: site.kind for site in ns.locate(result.model)}
    assert kinds == {"norm": "layer_norm", "norm2": "rms_norm", "last": "layer_norm"}
    feeds = model.examples
    for name, array in model.run(feeds, np.float64).items():
        got = result.model.run(feeds, np.float64)[name]
        assert np.abs(got - array).max() < 1e-10 * np.abs(array).max()


@pytest.mark.parametrize("kind", KINDS)
def test_another_user_of_a_weight_keeps_its_own(kind: str) -> None:
    """A projection and positions that something else reads as well."""

    def body(m: Net, x: torch.Tensor) -> Any:
        y = m.lin(x) + m.places
        return m.head(m.norm(y)), torch.tanh(m.lin(F.relu(x)) + torch.relu(m.places))

    model = _model(kind, body)
    result = _swapped(model)
    assert len(result.done) == 1
    graph = result.model.graph
    arrays = [graph.constant(v) for v in graph.values() if v.is_constant and v.producer is None]
    net = Net(body).double()
    for kept in (net.lin.weight, net.lin.bias, net.places):
        array = kept.detach().numpy()
        alike = [a for a in arrays if a is not None and a.size == array.size]
        assert any(np.array_equal(a, array) or np.array_equal(a, array.T) for a in alike)


@pytest.mark.parametrize("name", ["a_stream", "behind_one", "channels_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_the_opset_norms_are_spelled_out(name: str, kind: str) -> None:
    bodies = SWAPPED | {
        "behind_one": (lambda m, x: torch.tanh(m.last(m.block(m.lin(x), m.norm))), TOKENS, 2)
    }
    body, shape, count = bodies[name]
    model = _model(kind, body, shape)
    error = NormswapError("RMSNormalization needs opset 23")
    with mock.patch.object(type(model.graph), "require", side_effect=error):
        result = _swapped(model)
    assert len(result.done) == count
    assert any("spelled out: RMSNormalization needs opset 23" in note for note in result.notes)
    assert operators(result.model.graph)["RMSNormalization"] == 0
    assert {site.kind for site in ns.locate(result.model)} == {"rms_norm"}


def test_norms_that_are_spelled_out_are_accurate_in_float16() -> None:
    """Their squares would leave float16."""
    net = Net(lambda m, x: m.head(m.last(m.stream(500 * x)))).half()
    model = ns.load(net.eval(), example_inputs=(torch.randn(TOKENS).half(),))
    error = NormswapError("RMSNormalization needs opset 23")
    with mock.patch.object(type(model.graph), "require", side_effect=error):
        result = RmsNorm()(model)
    assert len(result.done) == 3
    feeds = {"x": np.random.default_rng(0).standard_normal(TOKENS).astype(np.float16)}
    (exact,) = model.run(feeds, np.float64).values()
    errors = [np.abs(m.run(feeds)["linear_5"] - exact).max() for m in (model, result.model)]
    assert errors[1] <= 2 * errors[0] + 2e-3 * np.abs(exact).max()


def test_a_norm_whose_parameters_are_not_finite_is_left_alone() -> None:
    net = Net(lambda m, x: m.head(m.last(m.stream(x))))
    net.norm2.weight.data[1] = float("inf")
    model = ns.load(net.eval(), example_inputs=(torch.randn(TOKENS),))
    for result in (ns.swap(model, to="rmsnorm"), ns.fold_affine(model)):
        assert [site.name for site, _ in result.skipped] == ["norm2"]
        assert "not finite" in result.skipped[0][1]
        assert len(result.done) == 2


def test_a_large_mean_costs_nothing() -> None:
    """Its stream has a mean 1e4 times its deviation: the centred one never holds it."""

    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.head(m.last(m.stream(x)))

    net = Net(body)
    net.lin.bias.data += 1e4
    model = ns.load(net.eval(), example_inputs=(torch.randn(TOKENS),))
    result = lower(RmsNorm()(model), ns.Lowering(kernels=model.kind == "fx"))
    assert len(result.done) == 3
    report = ns.validate(model, result.model)
    assert report.passed, report
    for output in report.outputs:
        kinds = ("normal", "batch_1", "constant")  # beside larger inputs the mean is nothing
        tame = [probe for probe in output.probes if probe.probe in kinds]
        assert len(tame) == 3
        assert all(probe.max_candidate < 0.1 * probe.max_original for probe in tame)
