"""Gradients: the formulas in float64, the kernels' accuracy beside torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import normswap.lowering.kernels  # noqa: F401

ops = torch.ops.normswap
EPS = 1e-5


@pytest.mark.parametrize("scaled", [False, True])
def test_formulas(scaled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    branch, residual = (
        torch.randn(2, 2, 5, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(2)
    )
    weight, bias, scale = (
        torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)
    )
    factor = scale if scaled else None
    for operator, given in (
        (ops.layer_norm, (branch, weight, bias)),
        (ops.layer_norm, (branch, None, None)),
        (ops.rms_norm, (branch, weight)),
        (ops.add_layer_norm, (branch, residual, weight, bias, factor)),
        (ops.add_rms_norm, (branch, residual, weight, factor)),
    ):
        inputs = [a for a in given if a is not None]

        def call(*tensors: Tensor, given: Any = given, operator: Any = operator) -> Any:
            rest = iter(tensors)
            return operator(*(None if a is None else next(rest) for a in given), EPS)

        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


def _gradients(function: Any, tensors: list[Tensor], grads: list[Tensor]) -> tuple[Tensor, ...]:
    tensors = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*tensors), tensors, grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_no_less_accurate_than_torch(dtype: torch.dtype, mean: float) -> None:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    # The sum is exact in every dtype, so all see the same norm.
    residual = torch.full((300, 97), mean, dtype=dtype) + draw(300, 97).round(decimals=0)
    tensors = [draw(300, 97).round(decimals=0), residual, draw(97), draw(97)]
    grads = [draw(300, 97), draw(300, 97)]

    def torchs(b: Tensor, r: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = r + b
        return functional.layer_norm(total, (97,), weight, bias, EPS), total

    def ours(b: Tensor, r: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_layer_norm(b, r, weight, bias, None, EPS)

    wanted = _gradients(torchs, [t.double() for t in tensors], [g.double() for g in grads])
    found = _gradients(ours, tensors, grads)
    theirs = _gradients(torchs, tensors, grads)
    for name, a, b, c in zip(
        ["branch", "residual", "weight", "bias"], found, theirs, wanted, strict=True
    ):
        assert a.dtype == dtype
        ulp = torch.finfo(dtype).eps * c.abs().max()
        assert (a - c).abs().max() <= (b - c).abs().max() + ulp, name
        assert (a - c).square().mean() <= 1.02 * (b - c).square().mean(), name


def test_only_one_output_is_used() -> None:
    branch, residual = torch.randn(2, 4, 33)
    weight, scale = torch.rand(2, 33)

    def ours(b: Tensor, r: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(b, r, w, s, EPS)

    def torchs(b: Tensor, r: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        total = r + b * s
        return functional.rms_norm(total, (33,), w, EPS), total

    for output in (0, 1):
        found, wanted = (
            torch.autograd.grad(f(*tensors)[output].square().sum(), tensors, allow_unused=True)
            for f, tensors in (
                (f, [t.clone().requires_grad_() for t in (branch, residual, weight, scale)])
                for f in (ours, torchs)
            )
        )
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, 1e-5, 1e-5)


def test_a_compiled_step_uses_the_kernels() -> None:
    """Training under torch.compile: forward and backward are operators of normswap."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    from torch._dynamo.backends.common import aot_autograd

    x = torch.randn(4, 33, requires_grad=True)
    weight = torch.rand(33, requires_grad=True)
    compiled = torch.compile(
        lambda a, w: ops.layer_norm(a, w, None, EPS).square().sum(),
        backend=aot_autograd(fw_compiler=backend, bw_compiler=backend),
        fullgraph=True,
    )
    found = torch.autograd.grad(compiled(x, weight), (x, weight))
    loss = functional.layer_norm(x, (33,), weight, None, EPS).square().sum()
    wanted = torch.autograd.grad(loss, (x, weight))
    assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(found, wanted, strict=True))
    assert {"normswap.layer_norm.default", "normswap.layer_norm_backward.default"} <= set(seen)
