"""What writes to the residual stream is fitted to the original's stream, where it reaches it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.fit.ridge_strength import STRENGTHS
from normswap.fit.sweep import HELD_OUT
from normswap.norms.residuals import residuals
from normswap.norms.towers import towers
from normswap.passes.base import PassResult
from normswap.passes.refit_writers import _arrival, _writer
from tests.zoo.exports import FX, model_as


class _Block(nn.Module):
    """x + scale * fc2(gelu(fc1(norm(x)))), and a head."""

    def __init__(self, scale: torch.Tensor | None) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 8)
        self.scale = None if scale is None else nn.Parameter(scale)

    def forward(self, x: torch.Tensor) -> Any:
        branch = self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))
        stream = x + (branch if self.scale is None else self.scale * branch)
        return stream, self.head(stream)


def _data(count: int = 200) -> np.ndarray:
    random = np.random.default_rng(0)
    size = np.exp(random.standard_normal((count, 6, 1)))  # which only the norm takes away
    return (size * random.standard_normal((count, 6, 8)) + 1).astype(np.float32)


def _models(scale: torch.Tensor | None) -> tuple[ns.Model, ns.Model, ns.Model]:
    """The original, swapped, and swapped with its writer refitted."""
    torch.manual_seed(0)
    example = (torch.randn(3, 6, 8),)
    model = ns.load(_Block(scale), example_inputs=example, dynamic_axes={"x": {0: "batch"}})
    plain = ns.swap(model, to="affine", data=_data())
    refitted = ns.swap(model, ns.Affine(refit_writers=True), data=_data())
    assert refitted.notes == []
    return model, plain.model, refitted.model


def _stream(model: ns.Model) -> np.ndarray:
    return next(iter(model.run({"x": _data()}).values())).astype(np.float64)


def _parameters(model: ns.Model) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in model.to_torch().named_parameters()}


_SCALE = torch.tensor([1e-3, -2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 0.0])


@pytest.mark.parametrize("scale", [None, _SCALE], ids=["plain", "LayerScale"])
def test_what_a_writer_gains_is_the_ridge_regression_of_what_the_stream_lacks(
    scale: torch.Tensor | None,
) -> None:
    model, plain, refitted = _models(scale)
    lacks = (_stream(model) - _stream(plain)).reshape(-1, 8)
    graph = plain.graph
    (hidden,) = (node.output for node in graph.nodes if node.op == "Gelu")
    (h,) = graph.evaluate([hidden], {graph.value("x"): _data()})
    h = h.reshape(-1, 12).astype(np.float64)
    old, new = _parameters(plain), _parameters(refitted)
    factor = np.ones(8) if scale is None else scale.numpy()
    gained = [factor * (new[n] - old[n]).T for n in ("fc2.weight", "fc2.bias")]
    lacks[:, factor == 0] = 0  # of which nothing can be written
    size = np.abs(gained[0]).max(0) + 1e-9
    fitted = np.repeat(np.arange(len(_data())) % HELD_OUT != HELD_OUT - 1, len(h) // len(_data()))
    fits = [_ridge(h[fitted], lacks[fitted], strength) for strength in STRENGTHS]
    off = [np.max(np.abs(gained[0] - weight) / size) for weight, _ in fits]
    best = int(np.argmin(off))
    assert off[best] < 1e-2, off
    np.testing.assert_allclose(gained[1], fits[best][1], atol=1e-3)
    rest = _stream(model) - _stream(refitted)
    assert np.square(rest).sum() < np.square(lacks).sum()


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    centred = x - x.mean(0)
    square = centred.T @ centred
    level = strength * np.trace(square) / len(square)
    weight = np.linalg.solve(square + level * np.eye(len(square)), centred.T @ y)
    return weight, y.mean(0) - x.mean(0) @ weight


def test_a_channel_that_layer_scale_shuts_off_keeps_its_weights() -> None:
    model, _, refitted = _models(_SCALE)
    old, new = _parameters(model), _parameters(refitted)
    changed = np.abs(new["fc2.weight"] - old["fc2.weight"]).max(1)
    assert changed[-1] == 0
    assert (changed[:-1] > 1e-4).all()
    np.testing.assert_array_equal(new["scale"], old["scale"])
    for name in ("fc1.weight", "head.weight", "head.bias"):
        np.testing.assert_array_equal(new[name], old[name])


_IMAGES = np.random.default_rng(0).standard_normal((20, 3, 32, 32)).astype(np.float32)


def _refitted(name: str, form: str = FX) -> PassResult:
    return ns.swap(model_as(name, form), ns.Affine(refit_writers=True), data=_IMAGES)


@pytest.mark.parametrize(
    "name", ["timm_swin", "hf_swin", "open_clip_clip", "timm_convnext", "timm_dinov2_reg"]
)
def test_every_row_of_a_writer_is_found_in_the_stream(name: str) -> None:
    """Windows that are shifted and put back, [tokens, samples, channels], channels first."""
    graph = model_as(name, FX).graph
    images = next(v for v in graph.inputs if v.rank == 4)
    found = [w for r in residuals(graph) if (w := _writer(graph, r)) and w.linear.bias is not None]
    found = [w for w in found if towers(graph)[w.total] == "image"]
    assert len(found) >= 4
    for writer in found:
        wanted = [writer.linear.input, writer.skip, writer.total]
        feed = _IMAGES[:3, :, : images.shape[2], : images.shape[3]]  # type: ignore[index]
        hidden, skip, total = graph.evaluate(wanted, {images: feed}, np.float64)
        arrival = _arrival(writer, hidden, [feed] * len(writer.inputs))
        assert arrival is not None
        rows = np.moveaxis(hidden, writer.linear.axis, -1).reshape(-1, hidden.shape[-1])
        bias = writer.linear.bias
        written = arrival.scale * (rows @ writer.linear.weight.T + bias)
        source = np.moveaxis(arrival.source, arrival.axis, -1)[..., 0]
        branch = np.moveaxis(total - skip, arrival.axis, -1)
        size = np.abs(branch).max()
        np.testing.assert_allclose(written[source], branch, atol=1e-6 * size)


def test_what_cannot_be_refitted_is_told() -> None:
    """A TorchScript file computes where windows go from the sizes of other values."""
    (note,) = _refitted("timm_swin", "torchscript-14").notes
    assert note.startswith("3 writers of the stream keep their weights, since what they write is")


def test_layer_scale_is_no_hindrance_in_a_real_model() -> None:
    result = _refitted("timm_dinov2_reg")
    assert result.notes == []
    old, new = _parameters(model_as("timm_dinov2_reg", FX)), _parameters(result.model)
    changed = {name for name in old if name in new and not np.array_equal(old[name], new[name])}
    writers = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.proj", "mlp.fc2")]
    assert changed == {f"{writer}.{kind}" for writer in writers for kind in ("weight", "bias")}


def test_nothing_before_the_first_swapped_norm_is_touched() -> None:
    model = model_as("timm_dinov2_reg", FX)
    result = ns.swap(
        model, ns.Affine(refit_writers=True), data=_IMAGES, sites="blocks.1.norm2,norm"
    )
    old, new = _parameters(model), _parameters(result.model)
    changed = {name for name in old if name in new and not np.array_equal(old[name], new[name])}
    assert changed == {"blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2.bias"}
