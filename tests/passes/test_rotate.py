"""Streams that are turned: what an orthogonal matrix is made of, and which streams take one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns
from normswap.errors import NormswapError
from normswap.lowering import lower
from normswap.model import Model
from normswap.passes.algebra.orthogonal import hadamard, principal, random_orthogonal
from normswap.passes.rms_norm import RmsNorm
from tests.effort import ALL
from tests.passes.fold_checks import KINDS, captured
from tests.passes.norm_checks import check_exact, operators
from tests.passes.test_rms_norm_zoo import PRE_NORM, TORCHSCRIPT
from tests.zoo.exports import FX, model_as

C, N = 12, 6
FLAT = (12, 20, 48, 96, 192, 384, 512, 640, 768, 1024, 1152, 1280, 1408)
ZOO = [("timm_vit", TORCHSCRIPT), ("hf_clip", FX)]
if ALL:
    ZOO += [("hf_aimv2", FX)]
    ZOO += [(name, form) for name in PRE_NORM for form in (FX, TORCHSCRIPT)]
    ZOO = list(dict.fromkeys(ZOO))


class Rms(nn.Module):
    """An RMSNorm that every exporter can write."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Net(nn.Module):
    """Blocks on a stream, with layers to choose from."""

    def __init__(self, body: Callable[[Net, torch.Tensor], Any], norm: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.norm, self.norm2, self.last = (norm(C) for _ in range(3))
        self.lin, self.lin2, self.lin3, self.head = (nn.Linear(C, C) for _ in range(4))
        self.scale, self.token = nn.Parameter(torch.randn(C)), nn.Parameter(torch.randn(1, 1, C))
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)

    def block(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        return x + self.scale * self.lin2(F.relu(self.lin3(norm(x))))

    def stream(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.lin(x)], 1)
        return self.block(self.block(x, self.norm), self.norm2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def _model(body: Callable[[Net, torch.Tensor], Any], norm: type[nn.Module], kind: str) -> Model:
    return captured(Net(body, norm), torch.randn(2, N, C), kind)


def _ends(result: ns.PassResult, op: str = "MatMul") -> int:
    """How many products a rotation has inserted."""
    return sum("turned" in node.output.name for node in result.model.graph.nodes if node.op == op)


@given(st.integers(1, 64))
def test_every_size_has_a_matrix_that_mixes_every_channel(size: int) -> None:
    matrix = hadamard(size)
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-12
    magnitudes = np.abs(matrix) * np.sqrt(size)
    assert magnitudes.min() > 0
    assert magnitudes.max() <= np.sqrt(2) + 1e-9
    assert np.abs(random_orthogonal(size) @ random_orthogonal(size).T - np.eye(size)).max() < 1e-12


@pytest.mark.parametrize("size", FLAT)
def test_the_widths_of_models_have_entries_of_one_magnitude(size: int) -> None:
    assert np.allclose(np.abs(hadamard(size)), size**-0.5, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [nn.LayerNorm, Rms])
def test_a_stream_is_turned_and_nothing_is_added(norm: type[nn.Module], kind: str) -> None:
    model = _model(lambda m, x: m.head(m.last(m.stream(x)[:, 0])), norm, kind)
    result = check_exact(model, RmsNorm(rotate="hadamard"), model.examples)
    assert len(result.done) == 3
    assert not result.notes
    before, after = operators(model.graph), operators(result.model.graph)
    assert all(after[op] <= before[op] for op in ("Add", "Mul", "MatMul", "Linear", "Gemm"))
    x = model.graph.value(model.sites[1].input)
    y = result.model.graph.value(result.model.sites[1].input)
    stream, turned = (
        g.evaluate([v], dict(zip(g.inputs, model.examples.values(), strict=True)), np.float64)[0]
        for g, v in ((model.graph, x), (result.model.graph, y))
    )
    centred = stream - stream.mean(-1, keepdims=True) if norm is nn.LayerNorm else stream
    assert np.allclose(turned, centred @ hadamard(C).T)


@pytest.mark.parametrize("kind", KINDS)
def test_in_front_of_a_norm_that_cannot_turn_along_it_is_undone(kind: str) -> None:
    """What a base model gives is the output of its last norm."""
    model = _model(lambda m, x: m.last(m.stream(x)), nn.LayerNorm, kind)
    result = check_exact(model, RmsNorm(rotate="random"), model.examples)
    assert len(result.done) == 3
    assert _ends(result) == 1
    assert any("in front of 'last' a product undoes the rotation" in n for n in result.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_norm_that_writes_to_the_stream_a_product_turns_it(kind: str) -> None:
    """Another norm reads that one at once, as in transformers' CLIP."""

    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.head(m.last(m.block(m.block(m.norm(m.lin(x)), m.norm2), m.last)))

    model = _model(body, nn.LayerNorm, kind)
    result = check_exact(model, RmsNorm(rotate="hadamard"), model.examples)
    assert len(result.done) == 4
    assert _ends(result) == 1
    assert any("behind 'norm' a product turns" in note for note in result.notes)
    assert not any("a mean is subtracted" in note for note in result.notes)
    assert operators(result.model.graph)["ReduceMean"] == 0


REFUSED: dict[str, tuple[Callable[[Net, torch.Tensor], Any], str]] = {
    "queries": (lambda m, x: m.head(F.gelu(m.last(m.lin(x)))), "Gelu|Erf|Div|weight and bias stay"),
    "a_stream_that_is_read": (
        lambda m, x: (y := m.lin(x), m.head(m.last(y)) + m.lin2(F.relu(y)))[1],
        "read elsewhere|Relu",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_stream_that_cannot_be_turned_is_left_alone(name: str, kind: str) -> None:
    body, reason = REFUSED[name]
    result = check_exact(_model(body, Rms, kind), RmsNorm(rotate="hadamard"), {"x": _rows()})
    assert not result.modified
    assert all(re.search(reason, why) for _, why in result.skipped), result.skipped


def _rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, N, C))


@pytest.mark.parametrize("kind", KINDS)
def test_pca_sorts_the_channels_by_what_they_hold(kind: str) -> None:
    model = _model(lambda m, x: m.head(m.last(m.stream(x)[:, 0])), nn.LayerNorm, kind)
    data = {"x": np.random.default_rng(0).standard_normal((64, N, C))}
    result = ns.swap(model, RmsNorm(rotate="pca"), data=data)
    graph = result.model.graph
    normed = [graph.value(site.output) for site in result.model.sites]
    arrays = graph.evaluate(normed, {graph.inputs[0]: data["x"]}, np.float64)
    power = sum(np.square(a).reshape(-1, C).sum(0) for a in arrays)
    assert np.all(np.diff(power) <= 1e-6 * power[0])
    assert power[-1] < 1e-9 * power[0]  # the mean, which is gone


def test_pca_and_data_need_each_other() -> None:
    model = _model(lambda m, x: m.head(m.last(m.stream(x))), nn.LayerNorm, "fx")
    with pytest.raises(NormswapError, match="give --data"):
        RmsNorm(rotate="pca")(model)
    for how in (RmsNorm(), RmsNorm(rotate="hadamard")):
        with pytest.raises(NormswapError, match="leave it out"):
            ns.swap(model, how, data={"x": _rows()})
    with pytest.raises(NormswapError, match="none of hadamard"):
        RmsNorm(rotate="givens")


def test_principal_directions_come_in_order() -> None:
    rows = np.random.default_rng(0).standard_normal((100, 5)) * [1, 5, 2, 4, 3]
    turned = rows @ principal(rows.T @ rows).T
    assert np.all(np.diff(np.square(turned).sum(0)) < 0)


@pytest.mark.parametrize(("name", "form"), ZOO, ids=["-".join(case) for case in ZOO])
def test_models_hold_the_exact_contract(name: str, form: str) -> None:
    model = model_as(name, form)
    result = lower(RmsNorm(rotate="hadamard")(model), ns.Lowering(kernels=model.kind == "fx"))
    assert not any("is not turned" in note for note in result.notes)
    report = ns.validate(model, result.model)
    assert report.passed, report
