"""What the operators take and refuse, in place and out of place, eager and captured."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import normswap.lowering.kernels  # noqa: F401
from normswap.errors import NormswapError
from normswap.lowering.kernels import eager
from normswap.lowering.kernels.onnx_export import functional as without_in_place
from normswap.lowering.kernels.onnx_export import translations
from normswap.lowering.kernels.signatures import NORMS

ops = torch.ops.normswap
EPS = 1e-6
NAMES = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")


def arguments(name: str, x: Tensor, parameters: torch.dtype) -> list[Any]:
    """Arguments on the tensors' values, with every parameter."""
    tensors = [x, x.flip(0) * 2] if name.startswith("add") else [x]
    count = (2 if "layer" in name else 1) + len(tensors) - 1
    return [*tensors, *(torch.rand(x.shape[-1], dtype=parameters) for _ in range(count)), EPS]


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def written(name: str, given: list[Any]) -> tuple[Tensor, ...]:
    """The buffers after the operator in place."""
    assert getattr(ops, f"{name}_")(*given) is None
    return tuple(given[: 2 if name.startswith("add") else 1])


def _copied(given: list[Any]) -> list[Any]:
    return [a.clone() if isinstance(a, Tensor) else a for a in given]


@pytest.mark.parametrize("name", NAMES)
def test_in_place_is_out_of_place_bit_for_bit(name: str) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    shapes = ((3, 65, 64), (1, 1, 1), (0, 4, 8), (4, 0), (2, 1, 17))
    for dtype, shape in itertools.product(dtypes, shapes):
        for parameters in {dtype, torch.float32}:
            given = arguments(name, torch.randn(shape).to(dtype), parameters)
            wanted = outputs(getattr(ops, name)(*given))
            reference = outputs(eager.forward(NORMS[name], *given))
            with torch.no_grad():
                inference = written(name, _copied(given))
            trained = written(name, _copied(given))
            assert all(torch.equal(a, b) for a, b in zip(inference, trained, strict=True))
            for a, b, c in zip(inference, wanted, reference, strict=True):
                assert a.dtype == b.dtype == dtype
                assert torch.equal(a, b)
                ulps = 8 * torch.finfo(dtype).eps
                assert torch.allclose(b, c, ulps, ulps), (dtype, shape)


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name: str) -> None:
    wide = torch.randn(6, 5, 80)
    layouts = {
        "columns": wide[..., 3:67],
        "rows": wide[:, 1:4, :],
        "transposed": wide.transpose(0, 2),
        "shifted storage": wide.flatten()[1:2305].view(36, 64),
        "every other": wide[..., ::2],
    }
    for layout, x in layouts.items():
        given = arguments(name, x, torch.float32)
        given[-2] = torch.rand(2 * x.shape[-1])[::2]
        wanted = outputs(getattr(ops, name)(*(given := [_plain(a) for a in given])))
        given[0] = x
        found = outputs(getattr(ops, name)(*given))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), layout
        assert all(a.is_contiguous() for a in found)
        rest = wide.clone()
        given[0] = rest.as_strided(x.shape, x.stride(), x.storage_offset())
        assert torch.equal(written(name, given)[0], wanted[0]), layout
        outside = torch.ones_like(wide, dtype=torch.bool)
        outside.as_strided(x.shape, x.stride(), x.storage_offset())[:] = False
        assert torch.equal(rest[outside], wide[outside]), layout


def _plain(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


def test_mixed_dtypes_widen() -> None:
    branch, residual = torch.randn(4, 32).bfloat16(), torch.randn(4, 32)
    y, total = ops.add_layer_norm(branch, residual, None, None, None, EPS)
    assert torch.equal(total, residual + branch)
    assert torch.equal(y, ops.layer_norm(total, None, None, EPS))
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.layer_norm(branch, None, None, EPS).dtype == torch.bfloat16
        assert ops.layer_norm(residual, None, None, EPS).dtype == torch.float32


def test_refusals_are_one_line() -> None:
    x, other = torch.randn(3, 8), torch.randn(3, 8)
    needs = torch.randn(8, requires_grad=True)
    wide = torch.randn(40)
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        ("layer_norm", (x, torch.ones(7), None, EPS), r"weight has shape \[7\].*give \[8\]"),
        ("rms_norm", (x, torch.ones(1, 8), EPS), r"weight has shape \[1, 8\]"),
        ("layer_norm", (torch.ones(3, 8).long(), None, None, EPS), "torch.int64 has no norm"),
        ("rms_norm", (torch.tensor(1.0), None, EPS), "a scalar has no last axis"),
        ("add_rms_norm", (x, other[:1], None, None, EPS), r"residual \[1, 8\].*differ"),
        ("layer_norm_", (x, needs, None, EPS), "inference: a tensor requires grad"),
        ("add_rms_norm_", (x, x, None, None, EPS), "share memory"),
        ("add_rms_norm_", (wide[:32], wide[4:36], None, None, EPS), "share memory"),
        ("add_layer_norm_", (x.half(), other, None, None, None, EPS), "need one dtype"),
    ]
    for name, given, expected in cases:
        with pytest.raises(RuntimeError, match=expected) as caught:
            getattr(ops, name)(*given)
        assert "\n" not in str(caught.value)
        assert f"normswap::{name}" in str(caught.value)
    with torch.no_grad():
        ops.layer_norm_(x, needs, None, EPS)
        for one, two in ((x, x), (wide[:32], wide[4:36]), (wide[4:36], wide[:32])):
            with pytest.raises(RuntimeError, match="share memory") as caught:
                ops.add_layer_norm_(one, two, None, None, None, EPS)
            assert "\n" not in str(caught.value)
        apart = wide.clone()
        ops.add_layer_norm_(apart[:20], apart[20:], None, None, None, EPS)
        y, total = ops.add_layer_norm(wide[:20], wide[20:], None, None, None, EPS)
        assert torch.equal(apart, torch.cat([y, total]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autograd_hears_of_a_buffer_that_it_saved(dtype: torch.dtype) -> None:
    for name in NAMES:
        given = arguments(name, torch.randn(3, 8, dtype=dtype), dtype)
        for saved in range(2 if name.startswith("add") else 1):
            inner = given[saved].requires_grad_() * 2
            loss = inner.square().sum()
            with torch.no_grad():
                written(name, [*given[:saved], inner, *given[saved + 1 :]])
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    given = arguments(name, torch.randn(2, 3, 20), torch.float32)
    trained = [a.requires_grad_() if isinstance(a, Tensor) else a for a in _copied(given)]
    opcheck(getattr(ops, name).default, tuple(trained))
    opcheck(getattr(ops, f"{name}_").default, tuple(given))
    if not name.startswith("add"):
        x, weight = given[:2]
        backward = getattr(ops, f"{name}_backward").default
        opcheck(backward, (x, x + 1, x, weight, EPS))


class Block(torch.nn.Module):
    """Every operator, with each optional input given and left out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = torch.nn.Parameter(torch.rand(3, 16)).unbind()
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        branch, residual = self.linear(x), self.linear(x + 1)
        ops.add_layer_norm_(branch, residual, self.weight, self.bias, self.scale, EPS)
        ops.add_rms_norm_(residual, branch, self.weight, None, EPS)
        y, total = ops.add_rms_norm(branch, residual, None, self.scale, EPS)
        y, total = ops.add_layer_norm(self.linear(y), total, self.weight, None, None, EPS)
        y = ops.rms_norm(ops.layer_norm(y, None, self.bias, EPS), self.weight, EPS)
        ops.layer_norm_(total, self.weight, None, EPS)
        ops.rms_norm_(total, None, EPS)
        return y, total


def _block(dtype: torch.dtype) -> tuple[torch.nn.Module, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    block = Block().to(dtype).requires_grad_(False).eval()
    for name in ("weight", "bias", "scale"):
        setattr(block, name, getattr(block, name).detach().to(dtype))
    x = torch.randn(2, 5, 16).to(dtype)
    return block, x, block(x)


def test_compiles_without_a_break() -> None:
    block, x, wanted = _block(torch.float32)
    with torch.no_grad():
        found = torch.compile(block, fullgraph=True)(x)
    assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(found, wanted, strict=True))


def test_exports_and_saves() -> None:
    block, x, wanted = _block(torch.bfloat16)
    batch = torch.export.Dim("batch")
    program = torch.export.export(block, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert all(torch.equal(a, b) for a, b in zip(loaded(x), wanted, strict=True))
    assert loaded(x.repeat(3, 1, 1))[0].shape == (6, 5, 16)


@pytest.mark.parametrize(
    ("opset", "dtype", "operator"),
    [(18, torch.float16, "ReduceMean"), (23, torch.float32, "RMSNormalization")],
)
def test_onnx_has_standard_operators(opset: int, dtype: torch.dtype, operator: str) -> None:
    block, x, wanted = _block(dtype)
    captured = torch.export.export(block, (x,)).module()
    program = torch.onnx.export(
        without_in_place(captured),
        (x,),
        dynamo=True,
        opset_version=opset,
        custom_translation_table=translations(opset),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    assert {node.domain for node in model.graph.node} == {""}
    assert {"LayerNormalization", operator} <= {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    bound = 30 * torch.finfo(dtype).eps
    for got, one in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, one.numpy(), bound, bound)


def test_onnx_needs_layer_normalization() -> None:
    with pytest.raises(NormswapError, match="opset 16 has no LayerNormalization"):
        translations(16)
