"""The C kernels against float64, beside torch's own norms on the same inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import normswap.lowering.kernels  # noqa: F401
from normswap.lowering.kernels.library import kernels
from tests.lowering.kernels.hostile import INPUTS

ops = torch.ops.normswap
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-6

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler")


def _errors(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    difference = got.double() - wanted
    return difference.abs().max().item(), difference.square().sum().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
def test_no_less_accurate_than_torch(centred: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    squares = {"norm": [0.0, 0.0], "add_norm": [0.0, 0.0]}
    for name, make in INPUTS.items():
        for columns in (1, 37, 384, 768, 1024):
            x = make(64, columns).to(dtype)
            branch = (make(64, columns).flip(0) / 2).to(dtype)
            weight, bias = torch.randn(2, columns, generator=generator).to(dtype)
            if centred:
                plain = ops.layer_norm(x, weight, bias, EPS)
                added, total = ops.add_layer_norm(branch, x, weight, bias, None, EPS)

                def torchs(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
                    constants = weight.to(x.dtype), bias.to(x.dtype)
                    return functional.layer_norm(x, x.shape[-1:], *constants, EPS)
            else:
                plain = ops.rms_norm(x, weight, EPS)
                added, total = ops.add_rms_norm(branch, x, weight, None, EPS)

                def torchs(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
                    return functional.rms_norm(x, x.shape[-1:], weight.to(x.dtype), EPS)

            assert torch.equal(total, x + branch)
            if not total.isfinite().all():  # torch's norm of it is no number, ours is
                assert added.isfinite().all()
                continue
            for which, got, one, two in (
                ("norm", plain, torchs(x), torchs(x.double())),
                ("add_norm", added, torchs(x + branch), torchs(x.double() + branch.double())),
            ):
                (ours, square), (theirs, their_square) = _errors(got, two), _errors(one, two)
                ulp = torch.finfo(dtype).eps * two.abs().max().item()
                assert ours <= theirs + ulp, (name, columns, which)
                squares[which][0] += square
                squares[which][1] += their_square
    for which, (ours, theirs) in squares.items():
        assert ours <= theirs, which


def test_a_large_mean_costs_no_accuracy() -> None:
    x = INPUTS["mean of 1e4"](256, 768).float()
    wanted = functional.layer_norm(x.double(), (768,), eps=EPS)
    assert (ops.layer_norm(x, None, None, EPS) - wanted).abs().max() < 1e-6
    assert (functional.layer_norm(x, (768,), eps=EPS) - wanted).abs().max() > 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_float32_parameters(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    branch, residual = torch.randn(2, 3, 50, 72, generator=generator).to(dtype)
    weight, bias, scale = torch.randn(3, 72, generator=generator)
    wide = residual.double() + scale.double() * branch.double()
    wanted = functional.layer_norm(wide, (72,), weight.double(), bias.double(), EPS)
    y, total = ops.add_layer_norm(branch, residual, weight, bias, scale, EPS)
    ulp = torch.finfo(dtype).eps
    assert total.dtype == y.dtype == dtype
    assert (total - wide).abs().max() <= ulp * wide.abs().max()
    assert (y - wanted).abs().max() <= 2 * ulp * wanted.abs().max()
    y, total = ops.add_rms_norm(branch, residual, weight, scale, EPS)
    wanted = functional.rms_norm(wide, (72,), weight.double(), EPS)
    assert (total - wide).abs().max() <= ulp * wide.abs().max()
    assert (y - wanted).abs().max() <= 2 * ulp * wanted.abs().max()


def test_infinite_and_missing_numbers_stay_in_their_rows() -> None:
    x = torch.randn(3, 70)
    x[0, 3], x[1, 69] = torch.inf, torch.nan
    for y in (ops.layer_norm(x, None, None, EPS), ops.rms_norm(x, None, EPS)):
        assert not y[:2].isfinite().all(1).any()
        assert y[2].isfinite().all()


def test_results_do_not_depend_on_the_threads() -> None:
    x, grad = torch.randn(2, 701, 384)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = ops.layer_norm(x, None, None, EPS)
            found.append((y, *ops.layer_norm_backward(grad, None, x, None, EPS)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
