"""Ranges of channels that move from a norm into what reads it: the same function, other ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns
from normswap.errors import NormswapError
from normswap.model import Model
from normswap.passes.smooth import Smooth
from tests.passes.fold_checks import KINDS, captured
from tests.passes.norm_checks import check_exact
from tests.zoo.exports import model_as

C, N = 6, 5
FORMS = ("balanced", "one-range", "powers-of-two")


class Net(nn.Module):
    """Three norms: two linear layers read the first, a convolution the second, the model's output
    is the third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.norm2, self.last = (nn.LayerNorm(C) for _ in range(3))
        self.lin, self.lin2, self.lin3 = (nn.Linear(C, C) for _ in range(3))
        self.conv = nn.Conv1d(C, C, 3, groups=2)
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        self.norm.weight.data *= torch.tensor([1, 300, 0.01, 2, 5, 1])

    def forward(self, x: torch.Tensor) -> Any:
        y = self.norm(x)
        x = x + self.lin3(F.relu(self.lin(y)) * torch.sigmoid(self.lin2(y)))
        return self.last(x), self.conv(self.norm2(x).transpose(1, 2))


def _rows(count: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, N, C))


def _model(kind: str) -> Model:
    return captured(Net(), torch.randn(2, N, C), kind)


def _given(model: Model, number: int) -> np.ndarray:
    value = model.graph.value(model.sites[number].output)
    (array,) = model.graph.evaluate([value], {model.graph.inputs[0]: _rows()}, np.float64)
    return array.reshape(-1, C)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_same_function_with_even_channels(form: str, kind: str) -> None:
    model = _model(kind)
    data = ns.load_data({model.inputs[0].name: _rows()}, model)
    result = check_exact(model, Smooth(scales=form, data=data, alpha=1), model.examples)
    assert [site.name for site in result.done] == ["norm", "norm2"]
    assert "output of the model" in result.skipped[0][1]
    size = np.abs(_given(result.model, 0)).max(0)
    assert np.abs(_given(model, 0)).max(0).max() > 1000 * np.abs(_given(model, 0)).max(0).min()
    most = {"balanced": 1.0, "one-range": 1.0, "powers-of-two": 2.0}[form]
    if form == "one-range":
        size = np.ptp(_given(result.model, 0), axis=0)
        assert np.allclose(_given(result.model, 0).min(0), _given(result.model, 0).min())
    assert size.max() <= most * size.min() * (1 + 1e-9)


def test_balanced_evens_out_weights_against_activations() -> None:
    """sqrt(max|y| max|W|) of each channel is what both have then."""
    model = _model("fx")
    result = ns.swap(model, Smooth(), data={"x": _rows()}).model
    rows, graph = np.abs(_given(result, 0)).max(0), result.graph
    layers = [n for n in graph.value(result.sites[0].output).readers if n.op == "Linear"]
    weights = [graph.constant(n.data_input(1)) for n in layers]
    columns = np.max([np.abs(w).max(0) for w in weights if w is not None], 0)
    assert len(layers) == 2
    assert np.allclose(rows, columns, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "graph"), [("timm_vit", "fx"), ("hf_vit", "torchscript-14")])
def test_models_hold_the_exact_contract(name: str, graph: str, form: str) -> None:
    model = model_as(name, graph)
    feeds = {spec.name: model.examples[spec.name] for spec in model.inputs}
    result = ns.swap(model, Smooth(scales=form), data=feeds)
    assert len(result.done) >= 5
    report = ns.validate(model, result.model)
    assert report.passed, report
    if form == "powers-of-two":
        same = zip(model.run(feeds).values(), result.model.run(feeds).values(), strict=True)
        assert graph != "fx" or all(np.array_equal(a, b) for a, b in same)


def test_options_are_checked() -> None:
    with pytest.raises(NormswapError, match="between 0 and 1"):
        Smooth(alpha=2)
    with pytest.raises(NormswapError, match="none of balanced"):
        Smooth(scales="even")
    with pytest.raises(NormswapError, match="needs calibration data"):
        Smooth()(_model("fx"))


def test_a_channel_that_is_always_0_keeps_its_place() -> None:
    net = Net()
    net.norm.weight.data[2] = net.norm.bias.data[2] = 0
    model = captured(net, torch.randn(2, N, C), "fx")
    for form in FORMS:
        data = ns.load_data({"x": _rows()}, model)
        assert check_exact(model, Smooth(scales=form, data=data), model.examples).done
