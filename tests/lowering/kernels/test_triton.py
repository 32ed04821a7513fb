"""The Triton kernels, on a GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton", reason="triton is not installed")

from normswap.lowering.kernels import cuda, eager, triton_launch  # noqa: E402
from normswap.lowering.kernels.signatures import NORMS  # noqa: E402

EPS = 1e-6
COLUMNS = (1, 37, 199, 768, 1024, 4097)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _on_cuda(name: str, *given: object) -> Any:
    """What runs an operator on CUDA tensors."""
    if name.endswith("_backward"):
        return cuda.backward(NORMS[name.removesuffix("_backward")])(*given)  # type: ignore[arg-type]
    if name.endswith("_"):
        return cuda.forward_in_place(NORMS[name[:-1]])(*given)
    return cuda.forward(NORMS[name])(*given)


@pytest.fixture
def _long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends every row to the kernels for rows that no register file holds."""
    monkeypatch.setattr(triton_launch, "LONGEST_FORWARD", 0)
    monkeypatch.setattr(triton_launch, "LONGEST_BACKWARD", 0)


def _draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def _rows(columns: int) -> int:
    """Several programs, the last one not full; the interpreter is slow."""
    return 37 if columns < 100 else 7 if columns < 1000 else 3


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype, ulps: float = 4) -> bool:
    scale = wanted.double().abs().max().item()
    return bool((found - wanted).abs().max() <= ulps * torch.finfo(dtype).eps * max(scale, 1e-30))


def _check_forward(rows: int, columns: int, dtype: torch.dtype, mean: float) -> None:
    branch = _draw(rows, columns, dtype=dtype)
    residual = (_draw(rows, columns, seed=1) + mean).to(dtype)
    weight, bias, scale = (_draw(columns, seed=s) for s in (2, 3, 4))
    half = weight.to(dtype)
    calls: list[tuple[str, tuple[Tensor | None, ...]]] = [
        ("layer_norm", (residual, half, bias)),
        ("rms_norm", (residual, None)),
        ("add_layer_norm", (branch, residual, weight, None, scale)),
        ("add_rms_norm", (branch, residual, half, None)),
    ]
    for name, given in calls:
        wide = [None if a is None else a.double() for a in given]
        wanted = eager.forward(NORMS[name], *wide, EPS)
        found = _on_cuda(name, *given, EPS)
        buffers = [None if a is None else a.clone() for a in given]
        _on_cuda(f"{name}_", *buffers, EPS)
        pairs = [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True)
        for (one, exact), buffer in zip(pairs, buffers, strict=False):
            assert one.dtype == dtype
            assert _close(one, exact, dtype), name
            assert torch.equal(buffer, one), name


@pytest.mark.parametrize("columns", COLUMNS)
def test_forward(columns: int) -> None:
    for dtype, mean in zip(DTYPES, (3.0, 0.0, 3.0), strict=True):
        _check_forward(_rows(columns), columns, dtype, mean)


@pytest.mark.usefixtures("_long_rows")
@pytest.mark.parametrize("columns", [1, 4097])
def test_forward_of_long_rows(columns: int) -> None:
    _check_forward(3, columns, torch.float32, 1.0)
    x = _draw(3, columns, dtype=torch.bfloat16)
    total = x + x.flip(0)
    y, rounded = _on_cuda("add_layer_norm", x, x.flip(0), None, None, None, EPS)
    assert _close(rounded, total, torch.bfloat16, 1)  # the interpreter does not round to even
    wanted = functional.layer_norm(total.double(), (columns,), eps=EPS)
    assert _close(y, wanted, torch.bfloat16)


def _check_backward(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, grad, grad_sum = (_draw(rows, columns, dtype=dtype, seed=s) for s in range(3))
    weight = _draw(columns, dtype=dtype, seed=3)
    calls = ("layer_norm", "rms_norm")
    present = ((grad_sum, weight), (None, None))
    for norm, (added, scaled) in itertools.product(calls, present):
        wide = [None if a is None else a.double() for a in (grad, added, x, scaled)]
        wanted = eager.backward(NORMS[norm], *wide, EPS)  # type: ignore[arg-type]
        name = f"{norm}_backward"
        found = _on_cuda(name, grad, added, x, scaled, EPS)
        again = _on_cuda(name, grad, added, x, scaled, EPS)
        assert _close(found[0], wanted[0], dtype, 8), name
        for one, exact in zip(found[1:], wanted[1:], strict=True):
            assert one.dtype == torch.float32
            assert _close(one, exact, torch.float32, 64), name
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("columns", [c for c in COLUMNS if c > 1])
def test_backward(columns: int) -> None:
    for dtype in DTYPES:
        _check_backward(_rows(columns), columns, dtype)


@pytest.mark.usefixtures("_long_rows")
def test_backward_of_long_rows() -> None:
    _check_backward(3, 4097, torch.float32)


def test_backward_of_one_column_is_zero() -> None:
    x, grad = _draw(9, 1), _draw(9, 1, seed=1)
    grad_x, grad_weight, grad_bias = _on_cuda("layer_norm_backward", grad, None, x, None, EPS)
    assert not grad_x.any()
    assert not grad_weight.any()
    assert torch.allclose(grad_bias, grad.sum(0))


def test_strides_and_a_mean_of_1e4() -> None:
    wide = _draw(6, 5, 80)
    for x in (wide[..., 3:67], wide[:, 1:4], wide.transpose(0, 2), wide[..., ::2]):
        wanted = _on_cuda("layer_norm", x.contiguous(), None, None, EPS)
        assert torch.equal(_on_cuda("layer_norm", x, None, None, EPS), wanted)
        buffer = wide.clone().as_strided(x.shape, x.stride(), x.storage_offset())
        _on_cuda("layer_norm_", buffer, None, None, EPS)
        assert torch.equal(buffer, wanted)
    x = _draw(20, 768) + 1e4
    wanted = functional.layer_norm(x.double(), (768,), eps=EPS)
    assert (_on_cuda("layer_norm", x, None, None, EPS) - wanted).abs().max() < 2e-6


def test_what_triton_cannot_take_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Triton got a tensor that it cannot take")

    monkeypatch.setattr(triton_launch, "forward", refuse)
    with pytest.raises(AssertionError):
        _on_cuda("rms_norm", _draw(3, 8), None, EPS)
    x = _draw(3, 8).double()
    assert torch.equal(
        _on_cuda("rms_norm", x, None, EPS), eager.forward(NORMS["rms_norm"], x, None, EPS)
    )
    assert _on_cuda("layer_norm", _draw(0, 8), None, None, EPS).shape == (0, 8)
    with pytest.raises(RuntimeError, match=r"weight has shape \[7\]"):
        _on_cuda("rms_norm", _draw(3, 8), torch.ones(7, device=DEVICE), EPS)
