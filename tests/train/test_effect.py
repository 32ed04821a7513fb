"""Weights without effect are told from those with a small one."""

from __future__ import annotations

import torch
from torch import nn

from normswap import BatchNorm, swap
from normswap.train.distill import distill
from normswap.train.taps import without_effect
from tests.train import tiny


def test_a_bias_in_front_of_a_batch_norm() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    x = torch.randn(16, 4, dtype=torch.float64)
    assert without_effect(module, module(x).square().mean()) == ["0.bias"]
    module.zero_grad()
    small = 1e-6 * module[0].bias.sum() + module(x).square().mean()
    assert without_effect(module, small) == []
    module.zero_grad()
    assert without_effect(module, module.eval()(x).square().mean()) == []


def test_they_stay_as_they_are() -> None:
    teacher, data = tiny.teacher(), tiny.inputs(64)
    student = swap(teacher, BatchNorm(ffn_batchnorm=True), data=data).model
    result = distill(student, teacher, data, steps=3, batch=16)
    assert "6 weights stay as they are: nothing depends on them" in result.notes
    before, after = student.to_torch().state_dict(), result.model.to_torch().state_dict()
    for name in ("attention.k.bias", "fc1.bias", "norm2.bias"):
        assert torch.equal(before[f"blocks.1.{name}"], after[f"blocks.1.{name}"])
    assert not torch.equal(before["blocks.1.attention.q.bias"], after["blocks.1.attention.q.bias"])
