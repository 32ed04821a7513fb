"""A refusal names the operator that stands in the way, and the module that it is from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

import normswap as ns

C = 8


class _Gated(nn.Module):
    """SwiGLU without linear layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([silu(first) * second] * 2, -1)


class _Sigmoid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class _Block(nn.Module):
    """One norm; ``gate`` computes its input, reads its output or reads its stream."""

    def __init__(self, gate: nn.Module, where: str) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C)
        self.gate, self.where = gate, where
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = self.gate(h) if self.where == "front" else h
        n = self.norm(h)
        n = self.gate(n) if self.where == "reader" else n
        return self.last(n + self.gate(h) if self.where == "stream" else n)


class _Model(nn.Module):
    def __init__(self, gate: nn.Module, where: str) -> None:
        super().__init__()
        self.block = _Block(gate, where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


GATES: dict[str, Callable[[], nn.Module]] = {
    "Swish": nn.SiLU, "Gelu": nn.GELU, "Sigmoid": _Sigmoid, "Gated": _Gated,
}  # fmt: skip


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("where", ["front", "reader", "stream"])
def test_the_activation_in_the_way_is_named(gate: str, where: str) -> None:
    torch.manual_seed(0)
    model = ns.load(_Model(GATES[gate](), where), example_inputs=(torch.randn(2, 3, C),))
    result = ns.fold_affine(model) if where == "reader" else ns.swap(model, to="rmsnorm")
    ((_, why),) = result.skipped
    assert "of 'block.gate'" in why
    operator = {
        "Sigmoid": {"front": "Mul"},  # x sigmoid(x)
        "Gated": {"front": "Concat", "stream": "Split", "reader": "Swish"},
    }.get(gate, {}).get(where, gate)  # fmt: skip
    assert f"{operator} '" in why
