"""Constants that half precision changes: bounds and what is added, with no norm around them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns

C, N = 8, 5
KINDS = pytest.mark.parametrize("kind", ["fx", "torchscript"])
Builder = Callable[[str, nn.Module, dict[str, torch.Tensor]], ns.Model]
ROWS = np.random.default_rng(0).standard_normal((4, N, C)).astype(np.float32)
ROWS[:, 0] = 0  # a row of zeros is what the constants are there for


class Lengths(nn.Module):
    """Rows by their lengths, a clamp and a sum at which 0 / 0 is kept away, spelled as asked."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.first = how, nn.Linear(C, C, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        length = x.norm(dim=-1, keepdim=True)
        if self.how == "clamp":
            return F.normalize(x, dim=-1)
        if self.how == "sum":
            return x / (length + 1e-9)
        if self.how == "root":
            return x / torch.sqrt(length.square() + 1e-20)
        if self.how == "quotient":
            return x * (1 / torch.sqrt((x * x).sum(-1, keepdim=True).clamp(min=1e-12)))
        if self.how == "reciprocal":
            return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp(min=1e-12))
        return x / torch.maximum(length, torch.full((1, 1, 1), 1e-8).expand(1, N, 1))


HOW = {
    "clamp": 1e-12,
    "sum": 1e-9,
    "root": 1e-20,
    "quotient": 1e-12,
    "reciprocal": 1e-12,
    "maximum": 1e-8,
}


@KINDS
@pytest.mark.parametrize("how", HOW)
def test_a_number_that_vanishes_is_told_and_kept(build: Builder, how: str, kind: str) -> None:
    model = build(kind, Lengths(how), {"x": torch.from_numpy(ROWS[:2])})
    found = ns.headroom(model, data=ROWS)
    (lost,) = found.constants
    assert lost.number == pytest.approx(HOW[how], rel=1e-6)
    assert dict(lost.becomes) == {"float16": 0}
    assert f"{lost.number:.3g}: is 0 in float16" in str(found)
    assert found.to_json()["constants"][0]["becomes"] == {"float16": 0}
    simulated = ns.validate(model, model, data=ROWS, simulate="float16")
    assert any(f.kind == "underflow" and "is 0 in float16" in f.message for f in simulated.findings)
    assert not simulated.passed  # 0 / 0

    result = ns.convert(model, "float16")
    (island,) = result.islands
    assert "is 0 in float16" in island.reason
    (y,) = result.model.run({model.inputs[0].name: ROWS}).values()
    (wanted,) = model.run({model.inputs[0].name: ROWS}).values()
    np.testing.assert_allclose(y, wanted, atol=2e-3)
    assert ns.validate(model, result.model, data=ROWS, simulate="float16").passed
    assert not ns.convert(model, "bfloat16").islands


@KINDS
def test_what_the_format_holds_or_has_no_use_for_is_not_told(build: Builder, kind: str) -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(C, eps=1e-12)  # its statistics are float32

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x).clamp(-1e6, 1e6) / (x.abs() + 1e-6)

    model = build(kind, Bounded(), {"x": torch.from_numpy(ROWS[:2])})
    if kind != "fx":
        model = ns.swap(model, to="fused").model
    assert ns.headroom(model, data=ROWS).constants == []


@KINDS
def test_numbers_beyond_and_those_that_stand_for_infinity(build: Builder, kind: str) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((C,), 1e5))
            self.tiny = nn.Parameter(torch.linspace(1e-10, 1e-9, C))
            self.register_buffer("mask", torch.full((N, C), -3e38).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax((x * self.weight + self.tiny) * 1e-5 + self.mask, -1)

    model = build(kind, Large(), {"x": torch.from_numpy(ROWS[:2])})
    lost = {round(np.log10(c.number)): c for c in ns.headroom(model, data=ROWS).constants}
    assert set(lost) == {5, -9, 38}
    assert lost[5].becomes["float16"] == np.inf
    assert lost[-9].becomes["float16"] == 0
    assert lost[38].becomes["float16"] == 65504
    assert {name for c in lost.values() for name in c.becomes} == {"float16"}
    assert lost[5].to_json()["becomes"] == {"float16": None}


def test_numbers_of_any_size(build: Builder) -> None:
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x * x).sum(-1, keepdim=True).double() + 1e-300
            for _ in range(3):
                y = 1 / (y * -3.0) / 1e-300
            return torch.rsqrt(y) * x

    model = build("fx", Large(), {"x": torch.from_numpy(ROWS[:2])})
    (island,) = ns.convert(model, "float16").islands
    assert "1e-300" in island.reason
