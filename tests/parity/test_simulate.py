"""``validate(simulate=...)``: a candidate with every value rounded, against the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.parity.report import ApproximateOutput, ValidationReport
from tests.parity.conftest import Builder

SAMPLES = np.random.default_rng(0).standard_normal((20, 6, 16)).astype(np.float32)
KINDS = pytest.mark.parametrize("kind", ["fx", "onnx"])


class Block(nn.Module):
    """A spelled-out norm between two layers."""

    def __init__(self, epsilon: float = 1e-5, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))
        self.epsilon = epsilon
        with torch.no_grad():
            self.first.weight.mul_(gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        centred = x - x.mean(-1, keepdim=True)
        root = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.last(centred / root * self.weight + self.bias)


def messages(report: ValidationReport, kind: str) -> list[str]:
    return [finding.message for finding in report.findings if finding.kind == kind]


def figures(report: ValidationReport) -> ApproximateOutput:
    (output,) = report.outputs
    assert isinstance(output, ApproximateOutput)
    return output


@KINDS
def test_an_ordinary_model(build: Builder, kind: str) -> None:
    model = build(kind, Block(), {"x": torch.from_numpy(SAMPLES[:2])})
    report = ns.validate(model, model, data=SAMPLES, simulate="float16")
    assert report.passed
    assert report.contract == "approximate"
    assert report.candidate.runtime == "every value rounded to float16"
    assert not messages(report, "overflow") + messages(report, "underflow")
    assert 40 < (figures(report).sqnr_db or 0) < 80
    coarse = ns.validate(model, model, data=SAMPLES, simulate="bfloat16")
    assert 20 < (figures(coarse).sqnr_db or 0) < (figures(report).sqnr_db or 0) - 10
    assert len(report.sites) == 1
    assert 40 < (report.sites[0].sqnr_db or 0) < 90
    assert ns.validate(model, model, simulate="float16").passed  # on probes


@KINDS
def test_squares_that_overflow_name_the_norm(build: Builder, kind: str) -> None:
    model = build(kind, Block(gain=2e3), {"x": torch.from_numpy(SAMPLES[:2])})
    report = ns.validate(model, model, data=SAMPLES, simulate="float16")
    (message,) = messages(report, "overflow")
    (site,) = model.sites
    assert f"(Pow in the norm {site.name})" in message
    assert "is beyond 65504" in message
    assert (figures(report).sqnr_db or 0) < 20
    fused = ns.swap(model, to="fused").model
    mended = ns.validate(model, fused, data=SAMPLES, simulate="float16")
    assert not messages(mended, "overflow")
    assert (figures(mended).sqnr_db or 0) > 40
    assert not messages(ns.validate(model, model, data=SAMPLES, simulate="bfloat16"), "overflow")


@KINDS
def test_an_epsilon_that_vanishes(build: Builder, kind: str) -> None:
    block = Block(epsilon=1e-12, gain=0)  # nothing varies but epsilon is there
    with torch.no_grad():
        block.first.bias.zero_()
        block.last.weight[0] = 0
    model = build(kind, block, {"x": torch.from_numpy(SAMPLES[:2])})
    report = ns.validate(model, model, data=SAMPLES, simulate="float16")
    assert not report.passed
    assert any("NaN or infinite: 480 elements" in m for m in messages(report, "non_finite"))
    (vanished,) = messages(report, "underflow")
    assert "1e-12" in vanished
    assert "is 0 in float16" in vanished
    (message,) = messages(report, "overflow")
    assert "it gives NaN or infinity of finite values" in message


def test_a_candidate_in_half(build: Builder) -> None:
    class Half(nn.Module):
        def __init__(self, block: Block) -> None:
            super().__init__()
            self.block = block.half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x.half()).float()

    block, feeds = Block(), {"x": torch.from_numpy(SAMPLES[:2])}
    model = build("fx", block, feeds)
    wanted = figures(ns.validate(model, model, data=SAMPLES, simulate="float16"))
    report = ns.validate(model, build("fx", Half(block), feeds), data=SAMPLES, simulate="float16")
    assert figures(report).sqnr_db == pytest.approx(wanted.sqnr_db)


def test_bad_usage(onnx_model: Callable[..., ns.Model]) -> None:
    model = onnx_model([("Neg", ["x"], "y", {})], {"x": (("batch", 3), np.float32)}, ["y"])
    options: list[tuple[dict[str, Any], str]] = [
        ({"contract": "exact"}, "simulate needs contract approximate"),
        ({"bisect": True}, "leave bisect out"),
        ({"candidate_runtime": "onnxruntime"}, "leave onnxruntime or simulate out"),
    ]
    for more, message in options:
        with pytest.raises(NormswapError, match=message):
            ns.validate(model, model, simulate="float16", **more)
    with pytest.raises(NormswapError, match="'float8' is none of the formats"):
        ns.validate(model, model, simulate="float8")
