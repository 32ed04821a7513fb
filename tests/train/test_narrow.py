"""bfloat16 rounding computed in float32, against torch's autocast."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn.functional import cross_entropy

from normswap.train import narrow
from tests.train import tiny

CPU = torch.device("cpu")
MODES = {"real": contextlib.nullcontext, "computed": narrow.ComputedInFloat32}
EPS = torch.finfo(torch.bfloat16).eps


def _step(module: torch.nn.Module, mode: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and the gradients of all parameters as one vector."""
    module.zero_grad()
    x, labels = torch.from_numpy(tiny.inputs(16)), torch.arange(16) % tiny.CLASSES
    with MODES[mode]() if mode else contextlib.nullcontext():
        with narrow.autocast(CPU) if mode else contextlib.nullcontext():
            scores = module(x)
            loss = cross_entropy(scores.float(), labels)
        loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return scores.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients])


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def test_a_network_as_autocast_has_it() -> None:
    """As far from float32 as autocast is, and no further from autocast than that."""
    torch.manual_seed(0)
    module = tiny.Tiny()
    exact, real, ours = (_step(module, mode) for mode in (None, "real", "computed"))
    assert ours[0].dtype == real[0].dtype == torch.bfloat16
    for own, theirs, without in zip(ours, real, exact, strict=True):
        rounding = _distance(theirs, without)
        assert EPS / 10 < rounding < 4 * EPS
        assert _distance(own, without) < 1.5 * rounding
        assert _distance(own, theirs) < 1.5 * rounding


@pytest.mark.parametrize("native", [True, False])
def test_where_the_processor_has_none(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert isinstance(narrow.computed(CPU), narrow.ComputedInFloat32) != native
    assert not isinstance(narrow.computed(torch.device("cuda")), narrow.ComputedInFloat32)


def test_one_operator_to_the_bit() -> None:
    """A product in float32 of what is exact in bfloat16, rounded once; statistics stay float32."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, bias = torch.ones(32), torch.zeros(32)
    with narrow.ComputedInFloat32():
        product = x @ x.mT
        normed, mean, _ = torch.native_layer_norm(x, [32], weight, bias, 1e-5)
    assert torch.equal(product, (x.float() @ x.float().mT).bfloat16())
    assert (normed.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
