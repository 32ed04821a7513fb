"""Norms become products with a predicted scale: on every kind of graph, and how well."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.assets.digits import DIGITS_VIT, load_digits_split
from normswap.passes.base import NormsFitted
from tests.effort import ALL
from tests.passes.unlabelled import feeds as unseen
from tests.passes.unlabelled import images
from tests.zoo.exports import FX, model_as, zoo_model

_SAME = 5e-4  # relative to the largest output
_EXPORTS = [
    ("hf_vit", "torchscript-14"),
    ("open_clip_clip", "dynamo-18" if ALL else "torchscript-14"),
]


@functools.lru_cache
def _swapped(name: str, form: str) -> NormsFitted:
    result = ns.swap(model_as(name, form), to="predicted", data=images(name))
    assert isinstance(result, NormsFitted)
    assert (len(result.done), result.skipped) == (zoo_model(name).image_sites, [])
    return result


def _operators(model: ns.Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


@pytest.mark.parametrize(("name", "form"), _EXPORTS)
def test_the_kinds_of_graph_agree(name: str, form: str) -> None:
    feeds = unseen(name)
    got = _swapped(name, form).model.run(feeds).values()
    expected = _swapped(name, FX).model.run(feeds).values()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=_SAME * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize(("name", "form"), [("hf_vit", FX), ("hf_vit", "torchscript-14")])
def test_what_remains_is_a_product_and_an_exponential(name: str, form: str) -> None:
    swapped = _swapped(name, form)
    folded = ns.fold(swapped.model)
    assert len(folded.done) == len(swapped.done)
    feeds = unseen(name)
    for a, b in zip(
        folded.model.run(feeds).values(), swapped.model.run(feeds).values(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0)
    before, after = _operators(model_as(name, form)), _operators(folded.model)
    gone = {"LayerNormalization", "ReduceMean", "Pow", "Sqrt"}
    assert not gone & set(after)
    sites = len(swapped.done)
    spelled_out = "LayerNormalization" not in before
    assert after.count("Div") == before.count("Div") - spelled_out * sites
    assert after.count("Exp") == after.count("Clip") == sites
    assert after.count("Add") - before.count("Add") <= 3 * sites


def test_the_digits_model_keeps_its_classes() -> None:
    digits, original = load_digits_split(), ns.load(DIGITS_VIT)
    result = ns.swap(original, to="predicted", data=digits.train_images[:500])
    assert isinstance(result, NormsFitted)
    feeds = {"pixel_values": digits.test_images}
    classes = [m.run(feeds)["logits"].argmax(1) for m in (original, result.model)]
    assert (classes[0] == classes[1]).mean() > 0.97
    (output,) = result.agreement
    assert output.samples == 100
    assert output.top1 is not None
    assert output.top1 > 0.95
    assert all(0 < fit.held_out_error < 0.1 for fit in result.fits)


def test_a_constant_deviation_needs_no_prediction() -> None:
    """Rows of one length: the scale is a constant, and nothing of the norm is left."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(x))

    torch.manual_seed(0)
    module = Unit().eval()
    x = np.random.default_rng(0).standard_normal((60, 5, 8))
    x -= x.mean(-1, keepdims=True)
    x = (x / x.std(-1, keepdims=True)).astype(np.float32)
    model = ns.load(module, example_inputs=(torch.from_numpy(x[:2]),))
    result = ns.swap(model, to="predicted", data=x)
    assert isinstance(result, NormsFitted)
    assert result.fits[0].form == "a constant scale"
    folded = ns.fold(result.model).model
    assert _operators(folded) == ["Linear"]
    (expected,), (got,) = model.run({"x": x}).values(), folded.run({"x": x}).values()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_is_beyond_the_calibration_does_not_explode() -> None:
    digits, original = load_digits_split(), ns.load(DIGITS_VIT)
    model = ns.swap(original, to="predicted", data=digits.train_images[:200]).model
    far = {"pixel_values": 100 * digits.test_images[:20]}
    (expected,), (got,) = original.run(far).values(), model.run(far).values()
    assert np.isfinite(got).all()
    assert np.abs(got).max() < 1e3 * np.abs(expected).max()


def test_a_post_norm_model_keeps_the_mean_as_a_product() -> None:
    class Post(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
            self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.second(x + self.outer(torch.relu(self.inner(x))))

    torch.manual_seed(0)
    module = Post().eval()
    x = torch.randn(80, 6, 16) * (0.5 + torch.rand(80, 6, 1)) + 0.3
    model = ns.load(module, example_inputs=(x[:2],))
    result = ns.swap(model, to="predicted", data=x.numpy())
    assert len(result.done) == 2
    assert "ReduceMean" not in _operators(result.model)
    (expected,), (got,) = (m.run({"x": x.numpy()}).values() for m in (model, result.model))
    assert np.square(got - expected).mean() < 0.05 * np.square(expected).mean()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"directions": -1}, "--directions: takes 0 or more, got -1"),
        ({"tokens": "class"}, "--to predicted: its scale is each token's own"),
        ({"tokens": "position"}, "--to predicted: its scale is each token's own"),
    ],
)
def test_options_that_mean_nothing(how: dict[str, object], message: str) -> None:
    with pytest.raises(ns.NormswapError, match=message):
        ns.Predicted(**how)  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["predicted", "affine", "batchnorm"])
def test_one_sample_is_too_few(to: str) -> None:
    one = load_digits_split().train_images[:1]
    with pytest.raises(ns.NormswapError, match=f"--to {to}: one sample is too few"):
        ns.swap(ns.load(DIGITS_VIT), to=to, data=one)


class _OneNorm(nn.Module):
    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def test_activations_that_are_not_finite() -> None:
    class Overflows(_OneNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 1e20 * 1e20)

    x = torch.randn(20, 4, 16)
    model = ns.load(Overflows().eval(), example_inputs=(x[:2],))
    with pytest.raises(ns.NormswapError, match=r"'norm': its activations .* are not finite"):
        ns.swap(model, to="predicted", data=x.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 6, 16) * (0.3 + torch.rand(100, 6, 1)) + 0.5
    module = _OneNorm().eval()
    half = ns.load(copy.deepcopy(module).to(dtype), example_inputs=(x[:2].to(dtype),))
    whole = ns.load(module, example_inputs=(x[:2],))
    data = half.inputs[0].dtype
    result = ns.swap(half, to="predicted", data=np.asarray(x.numpy(), data))
    folded = ns.fold(result.model)
    (got,) = folded.model.run({"x": np.asarray(x.numpy(), data)}).values()
    (expected,) = (
        ns.swap(whole, to="predicted", data=x.numpy()).model.run({"x": x.numpy()}).values()
    )
    assert got.dtype == data
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    np.testing.assert_allclose(got.astype(float), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_hostile_rows(mean: float, size: float) -> None:
    """Large means, tiny variances, an outlier channel, as many tokens as channels, batch 1."""
    random = np.random.default_rng(0)
    x = size * random.standard_normal((60, 16, 16)) * random.uniform(0.5, 2, (60, 16, 1))
    x[..., 3] *= 50
    x = (x + mean).astype(np.float32)
    torch.manual_seed(0)
    model = ns.load(_OneNorm().eval(), example_inputs=(torch.from_numpy(x[:2]),))
    result = ns.swap(model, to="predicted", data=x)
    folded = ns.fold(result.model).model
    for batch in (x, x[:1]):
        (expected,), (got,) = model.run({"x": batch}).values(), folded.run({"x": batch}).values()
        assert np.isfinite(got).all()
        if result.done and mean < 100 * size:
            assert np.square(got - expected).mean() < 0.1 * np.square(expected).mean()
