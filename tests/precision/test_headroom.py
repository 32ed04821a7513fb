"""How large the values of a model become, against the same model run value by value."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns
from normswap.graph.graph import is_floating
from normswap.precision import magnitudes as measuring
from normswap.precision.headroom import Headroom
from tests.effort import ALL
from tests.passes.fold_checks import captured

C, N = 8, 5
KINDS = ("fx", "torchscript") if ALL else ("torchscript",)


class Block(nn.Module):
    """A pre-norm block with an attention, fused or not, and a GELU or ReLU in its FFN."""

    def __init__(self, fused: bool, spelled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused, self.spelled = fused, spelled
        self.norm, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.first, self.q, self.k, self.v, self.out = (nn.Linear(C, C) for _ in range(5))
        self.up, self.down = nn.Linear(C, 2 * C), nn.Linear(2 * C, C)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).reshape(-1, N, 2, C // 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax((q @ k.transpose(-1, -2)) * (C // 2) ** -0.5, -1) @ v
        return self.out(y.transpose(1, 2).reshape(-1, N, C))

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        if not self.spelled:
            return self.norm(x)
        centred = x - x.mean(-1, keepdim=True)
        root = torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-12)
        return centred / root * self.norm.weight + self.norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.attention(self.normed(x))
        return x + self.down(F.relu(self.up(self.norm2(x))))


def _model(kind: str, fused: bool = False, spelled: bool = False, scale: float = 1.0) -> ns.Model:
    block = Block(fused, spelled)
    block.first.weight.data *= scale
    return captured(block, torch.randn(2, N, C), kind)


def _data(count: int = 11) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, N, C))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elements", [1, 1000, 1 << 30], ids=["one", "some", "all"])
def test_every_value_is_measured_whatever_the_windows(kind: str, elements: int) -> None:
    model, x = _model(kind), _data()
    with mock.patch.object(measuring, "_ELEMENTS", elements):
        found = ns.headroom(model, data=x)
    assert found.samples == 11
    graph = model.graph
    wanted = [v for n in graph.nodes if n.dynamic_inputs() for v in n.outputs if v.uses]
    wanted = [v for v in wanted if v.dtype is not None and is_floating(v.dtype)]
    arrays = graph.evaluate(wanted, {graph.inputs[0]: x})
    told = {place.name: place for place in found.places}
    for value, array in zip(wanted, arrays, strict=True):
        size = np.abs(array)
        assert told[value.name].largest == pytest.approx(size.max()), value
        assert told[value.name].smallest == pytest.approx(size[size > 0].min()), value
    order = [place.name for place in found.places]
    assert order == sorted(order, key=[v.name for v in _in_order(model)].index)


def _in_order(model: ns.Model) -> list:
    return [*model.graph.inputs, *(v for n in model.graph.nodes for v in n.outputs)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_place_that_goes_over_is_named(kind: str) -> None:
    model = _model(kind, scale=1e5)
    found = ns.headroom(model, data=_data())
    first = found.first_over("float16")
    assert first is not None
    assert first.places("float16") < 0 < first.places("bfloat16")
    before = found.places[: found.places.index(first)]
    assert all(place.places("float16") >= 0 for place in before)
    assert found.over("float16")[0] == first
    assert found.first_over("bfloat16") is None
    assert "is the first beyond" in str(found)
    assert "bfloat16: nothing goes over" in str(found)


@pytest.mark.parametrize("kind", KINDS)
def test_squares_and_epsilons_of_spelled_norms_are_told(kind: str) -> None:
    model = _model(kind, spelled=True, scale=1e3)
    found = ns.headroom(model, data=_data())
    spelled = found.norms[0]
    assert spelled.site.spelling == "decomposed"
    assert spelled.inside is not None
    assert spelled.inside.kind == "norm"
    assert spelled.stream.places("float16") > 0 > spelled.inside.places("float16")
    assert spelled.epsilon("float16") == 0 < spelled.epsilon("bfloat16")
    assert spelled.site.epsilon == pytest.approx(1e-12)


def test_logits_inside_a_fused_attention_are_those_of_the_spelled_one() -> None:
    spelled, fused = (ns.headroom(_model("fx", fused=f), data=_data()) for f in (False, True))
    logits = [place for place in spelled.places if place.kind == "logits"]
    (one,) = (place for place in fused.places if place.kind == "logits")
    assert one.operator == "Attention"
    assert one.largest == pytest.approx(logits[-1].largest, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_values_are_those_around_an_activation(kind: str) -> None:
    found = ns.headroom(_model(kind), data=_data())
    hidden = [place for place in found.places if place.kind == "hidden"]
    assert [place.operator for place in hidden][-1] == "Relu"
    assert len(hidden) == 2


def test_a_model_in_half_precision_is_run_without_overflow() -> None:
    block = Block(fused=False, spelled=False)
    block.first.weight.data *= 1e4
    model = ns.load(block.half().eval(), example_inputs=(torch.randn(2, N, C).half(),))
    found = ns.headroom(model, data=10 * _data(2).astype(np.float16))
    place = found.first_over("float16")
    assert place is not None
    assert place.largest > 65504


def test_what_a_mask_writes_does_not_count() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.full((N, N), torch.finfo(torch.float32).min).triu(1)
            return torch.softmax(x @ x.transpose(1, 2) + mask * (x[..., :1] > -9), -1) @ x

    model = ns.load(Masked().eval(), example_inputs=(torch.randn(2, N, C),))
    found = ns.headroom(model, data=_data(4).astype(np.float32))
    assert found.first_over("float16") is None


def test_a_document_holds_what_is_told() -> None:
    found = ns.headroom(_model("fx", spelled=True, scale=1e5), data=_data())
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["samples"] == 11
    assert document["formats"]["float16"]["largest"] == 65504
    assert document["first_over"]["bfloat16"] is None
    assert [norm["site"] for norm in document["norms"]] == [n.site.name for n in found.norms]
    assert {place["kind"] for place in document["places"]} >= {"logits", "hidden", "stream"}
    assert isinstance(found, Headroom)


def test_data_is_needed() -> None:
    with pytest.raises(ns.NormswapError, match="headroom: needs data"):
        ns.headroom(_model("fx"), data=None)
