"""Norms become full affine maps: on every kind of graph and in every family, and how well."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.assets.digits import DIGITS_VIT, load_digits_split
from normswap.passes.base import PassResult
from tests.passes.unlabelled import feeds as unseen
from tests.passes.unlabelled import images
from tests.zoo.exports import FX, model_as, zoo_model

_SAME = 2e-4  # relative to the largest output, as between the kinds of graph elsewhere
_NAMES = ("hf_vit", "open_clip_clip")
_EXPORTS = [("hf_vit", "torchscript-14"), ("open_clip_clip", "dynamo-18")]
_OPTIONS: dict[str, ns.Affine] = {
    "plain": ns.Affine(),
    "writers": ns.Affine(refit_writers=True),
    "position": ns.Affine(tokens="position"),
    "class": ns.Affine(tokens="class", refit_writers=True),
}


def _error(original: ns.Model, other: ns.Model, feeds: dict[str, np.ndarray]) -> float:
    """The error's share of the first output's power."""
    expected, got = (next(iter(m.run(feeds).values())).astype(float) for m in (original, other))
    return float(np.square(got - expected).sum() / np.square(expected).sum())


def _done(result: PassResult, sites: int) -> ns.Model:
    assert (len(result.done), result.skipped, result.kept) == (sites, [], [])
    names = {site.name for site in result.done}
    assert not names & {site.name for site in ns.locate(result.model)}
    return result.model


@functools.lru_cache
def _reference(name: str, option: str) -> ns.Model:
    result = ns.swap(model_as(name, FX), _OPTIONS[option], data=images(name))
    return _done(result, zoo_model(name).image_sites)


@pytest.mark.parametrize("option", _OPTIONS)
@pytest.mark.parametrize(("name", "form"), _EXPORTS)
def test_the_kinds_of_graph_agree(name: str, form: str, option: str) -> None:
    model, feeds = model_as(name, form), unseen(name)
    before = {key: array.tobytes() for key, array in model.run(feeds).items()}
    result = ns.swap(model, _OPTIONS[option], data=images(name))
    got = _done(result, zoo_model(name).image_sites).run(feeds).values()
    expected = _reference(name, option).run(feeds).values()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=_SAME * np.abs(b).max(), rtol=0)
    after = {key: array.tobytes() for key, array in model.run(feeds).items()}
    assert after == before, "the pass changed its input"


@pytest.mark.parametrize("name", _NAMES)
def test_it_comes_nearer_than_a_scale_and_shift(name: str) -> None:
    model, feeds = model_as(name, FX), unseen(name)
    moments = ns.swap(model, to="batchnorm", data=images(name)).model
    error = _error(model, _reference(name, "plain"), feeds)
    assert error < 0.5 * _error(model, moments, feeds)


@functools.lru_cache
def _digits() -> tuple[ns.Model, np.ndarray, np.ndarray]:
    """The trained model with images and labels that it was not trained on."""
    split = load_digits_split()
    return ns.load(DIGITS_VIT), split.test_images, split.test_labels


def _accuracy(model: ns.Model) -> float:
    _, images, labels = _digits()
    (scores,) = model.run({"pixel_values": images}).values()
    return float((scores.argmax(1) == labels).mean())


@pytest.mark.parametrize(("count", "points"), [(1000, 0.02), (256, 0.03)])
def test_a_trained_model_keeps_its_accuracy(count: int, points: float) -> None:
    model, _, _ = _digits()
    data = load_digits_split().train_images[:count]
    result = ns.swap(model, ns.Affine(refit_writers=True), data=data)
    assert _accuracy(_done(result, 13)) >= _accuracy(model) - points


def test_of_a_trained_model_more_freedom_leaves_less_error() -> None:
    model, images, _ = _digits()
    data = load_digits_split().train_images[:256]
    swaps: list[ns.Pass] = [ns.Affine(refit_writers=True), ns.Affine(), ns.BatchNorm()]
    swapped = [ns.swap(model, how, data=data).model for how in swaps]
    errors = [_error(model, other, {"pixel_values": images}) for other in swapped]
    assert errors == sorted(errors)
    assert errors[0] < 0.6 * errors[2]


@pytest.mark.parametrize("tokens", ["class", "position"])
def test_groups_of_tokens_leave_a_scale_and_shift(tokens: str) -> None:
    model = model_as("hf_vit", FX)
    result = ns.swap(model, ns.Affine(tokens=tokens), data=images("hf_vit"))
    assert result.notes == ["a scale and shift for each of 17 tokens stay at 5 sites, unfolded"]
    added = _ops(result.model) - _ops(model)
    constants = {v.name: v.shape for v in result.model.graph.values() if v.is_constant}
    for site in result.done:
        for name in ("scale", "shift"):
            assert constants[f"{site.name}.{name}"] == (17, 48)
    assert added["Mul"] == 5
    second = result.done[1].name  # at the first norm the class token does not vary
    table = result.model.graph.constant(result.model.graph.value(f"{second}.scale"))
    assert table is not None
    rows = np.unique(table, axis=0)
    assert len(rows) == (2 if tokens == "class" else 17)
    assert (table[0] != table[1]).any()


def _ops(model: ns.Model) -> Counter[str]:
    return Counter(node.op for node in model.graph.nodes)


class _Tokens(nn.Module):
    """Rows of any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(x))
        return out


@pytest.mark.parametrize("kind", [ns.Affine, ns.BatchNorm])
def test_groups_of_tokens_need_a_fixed_number_of_them(kind: type[ns.Affine | ns.BatchNorm]) -> None:
    axes = {"x": {0: "batch", 1: "tokens"}}
    model = ns.load(_Tokens(), example_inputs=(torch.randn(2, 5, 8),), dynamic_axes=axes)
    data = {"x": np.random.default_rng(0).standard_normal((10, 5, 8)).astype(np.float32)}
    for tokens in ("class", "position"):
        with pytest.raises(ns.NormswapError, match=f"--tokens {tokens} leaves") as caught:
            ns.swap(model, kind(tokens=tokens), data=data)
        assert "the sizes of 'x' are not fixed" in str(caught.value)
        assert "\n" not in str(caught.value)
    swapped = ns.swap(model, kind(), data=data).model
    assert swapped.run({"x": np.zeros((3, 7, 8), np.float32)}).popitem()[1].shape == (3, 7, 4)


def test_unknown_groups() -> None:
    with pytest.raises(ns.NormswapError, match="'words' is none of all, class, position"):
        ns.swap(model_as("hf_vit", FX), ns.Affine(tokens="words"), data=images("hf_vit"))


@pytest.mark.parametrize(("count", "said"), [(1, "one sample is"), (4, "4 samples are")])
def test_fewer_samples_than_one_can_be_held_out_of(count: int, said: str) -> None:
    with pytest.raises(ns.NormswapError, match=f"{said} too few") as caught:
        ns.swap(model_as("hf_vit", FX), to="affine", data=images("hf_vit", count))
    assert "\n" not in str(caught.value)
    assert ns.swap(model_as("hf_vit", FX), to="affine", data=images("hf_vit", 5)).modified


def test_an_rms_norm_goes_like_a_layer_norm() -> None:
    model, feeds = model_as("timm_rms_norm", FX), unseen("timm_rms_norm")
    assert {site.kind for site in ns.locate(model)} == {"rms_norm"}
    data = images("timm_rms_norm")
    copied = ns.BatchNorm(fit="copy", tokens="class")
    for how in (copied, ns.BatchNorm(tokens="class"), ns.Affine(tokens="class")):
        result = ns.swap(model, how, data=data)
        assert _error(model, _done(result, 5), feeds) < (0.5 if how is copied else 0.01)


def test_post_norm_models_are_swapped_too() -> None:
    random = np.random.default_rng(0)

    def texts(count: int) -> dict[str, np.ndarray]:
        ids = random.integers(1, 48, (count, 12))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    model, data, feeds = model_as("hf_bert", FX), texts(80), texts(12)
    result = ns.swap(model, ns.Affine(refit_writers=True), data=data)
    moments = ns.swap(model, to="batchnorm", data=data).model
    error = _error(model, _done(result, 5), feeds)
    assert error < 0.5 * _error(model, moments, feeds)


def test_half_precision() -> None:
    model = model_as("timm_rms_norm", "fx-half")
    data = {"x": images("timm_rms_norm")["x"].astype(np.float16)}
    result = ns.swap(model, ns.Affine(tokens="class", refit_writers=True), data=data)
    swapped = _done(result, 5)
    constants = (v for v in swapped.graph.values() if v.is_constant and v.dtype is not None)
    assert {v.dtype for v in constants if v.dtype.kind == "f"} == {np.dtype(np.float16)}
    feeds = {"x": unseen("timm_rms_norm")["x"].astype(np.float16)}
    assert _error(model, swapped, feeds) < 0.02


def test_fewer_rows_than_channels_are_told_of_once() -> None:
    """The final norm of a CLIP reads one row for each image, and every fifth is held out."""
    zoo = zoo_model("hf_clip")
    shape = (20, *zoo.inputs[zoo.image].shape[1:])
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = ns.swap(model_as("hf_clip", FX), to="affine", data={zoo.image: images})
    told = [note for note in result.notes if "fewer than its" in note]
    assert len(told) == 1
    assert "16 rows" in told[0]
