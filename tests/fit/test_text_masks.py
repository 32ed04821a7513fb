"""Padding of texts enters no statistic, and [EOS] alone that of the norm which reads it."""

from __future__ import annotations

import numpy as np
import pytest

import normswap as ns
from normswap.fit.text_masks import text_masks
from normswap.norms import Site
from tests.effort import ALL
from tests.zoo.exports import FX, model_as, zoo_model

_LENGTH, _EOS, _TEXTS = 12, 49, 20
_CLIPS = [
    ("open_clip_clip", FX),
    ("open_clip_clip", "torchscript-14"),
    ("hf_clip", FX),
    *([("open_clip_clip", "dynamo-18")] if ALL else []),
]
clips = pytest.mark.parametrize(("name", "form"), _CLIPS, ids=map("-".join, _CLIPS))
_SWAPS: dict[str, ns.Pass] = {
    "moments": ns.BatchNorm(),
    "affine": ns.Affine(tokens="position", refit_writers=True),
}


def _ends() -> np.ndarray:
    """The position of [EOS] in each text."""
    return np.random.default_rng(0).integers(3, _LENGTH - 1, _TEXTS)


def _texts(padding: int) -> np.ndarray:
    """Texts that differ in what stands behind [EOS]: zeros, or words by another seed."""
    random = np.random.default_rng(1)
    ids = random.integers(1, 48, (_TEXTS, _LENGTH))
    if padding:
        filling = np.random.default_rng(padding).integers(0, _EOS + 1, ids.shape)  # [EOS] too
    else:
        filling = np.zeros_like(ids)
    behind = np.arange(_LENGTH) > _ends()[:, None]
    ids = np.where(behind, filling, ids)
    ids[np.arange(_TEXTS), _ends()] = _EOS
    return ids


def _feeds(name: str, padding: int = 0, images: bool = False) -> dict[str, np.ndarray]:
    zoo = zoo_model(name)
    random = np.random.default_rng(2)
    feeds: dict[str, np.ndarray] = {}
    for key, example in zoo.inputs.items():
        if key == zoo.image:
            image = random.standard_normal((_TEXTS, *example.shape[1:])).astype(np.float32)
            feeds |= {key: image} if images else {}
        elif key == "attention_mask":
            feeds[key] = np.ones((_TEXTS, _LENGTH), np.int64)
        else:
            feeds[key] = _texts(padding)
    return feeds


def _text_sites(model: ns.Model) -> list[Site]:
    return [site for site in ns.locate(model) if site.tower == "text"]


def _masks(model: ns.Model, site: Site, feeds: dict[str, np.ndarray]) -> np.ndarray:
    final = next((s for s in reversed(_text_sites(model)) if s.role == "final"), None)
    found = text_masks(model.graph, site, final, [feeds, feeds])
    assert found is not None
    np.testing.assert_array_equal(*found)
    return found[0]


@clips
@pytest.mark.parametrize("images", [False, True])
def test_tokens_up_to_eos_count_and_it_alone_at_the_end(name: str, form: str, images: bool) -> None:
    model, feeds = model_as(name, form), _feeds(name, padding=3, images=images)
    *inner, final = _text_sites(model)
    counter = np.arange(_LENGTH)
    for site in inner:
        np.testing.assert_array_equal(_masks(model, site, feeds), counter <= _ends()[:, None])
    np.testing.assert_array_equal(_masks(model, final, feeds), counter == _ends()[:, None])


def test_an_attention_mask_counts_too() -> None:
    model, feeds = model_as("hf_clip", FX), _feeds("hf_clip")
    feeds["attention_mask"] = (np.arange(_LENGTH) >= 2).astype(np.int64) + 0 * feeds["input_ids"]
    counter = np.arange(_LENGTH)
    expected = (counter >= 2) & (counter <= _ends()[:, None])
    np.testing.assert_array_equal(_masks(model, _text_sites(model)[0], feeds), expected)


def test_an_attention_mask_alone() -> None:
    """BERT reads no [EOS]: what the mask keeps counts, at every norm."""
    model, feeds = model_as("hf_bert", FX), {"input_ids": _texts(0)}
    feeds["attention_mask"] = (np.arange(_LENGTH) <= _ends()[:, None]).astype(np.int64)
    for site in _text_sites(model):
        found = _masks(model, site, feeds)
        np.testing.assert_array_equal(found, feeds["attention_mask"] != 0)


def test_all_tokens_count_where_the_last_one_is_read() -> None:
    """Such towers attend to the padding, whatever it is."""
    name = "open_clip_siglip_like"
    model, feeds = model_as(name, FX), _feeds(name)
    sites = _text_sites(model)
    for site in sites:
        assert text_masks(model.graph, site, sites[-1], [feeds]) is None


@pytest.mark.parametrize("swap", _SWAPS)
@clips
def test_padding_does_not_change_a_constant(name: str, form: str, swap: str) -> None:
    model = model_as(name, form)
    constants = []
    for padding in (0, 3):
        data = _feeds(name, padding)
        result = ns.swap(model, _SWAPS[swap], data=data, sites="tower=text")
        assert len(result.done) == 5
        values = [v for v in result.model.graph.values() if v.is_constant]
        constants.append({v.name: result.model.graph.constant(v) for v in values})
    first, other = constants
    changed = [n for n, a in first.items() if _differs(a, _original(model, n))]
    assert len(changed) >= 5  # the fit is among them
    for key, array in first.items():
        assert array is not None
        np.testing.assert_array_equal(other[key], array, err_msg=key)


def _original(model: ns.Model, name: str) -> np.ndarray | None:
    try:
        return model.graph.constant(model.graph.value(name))
    except KeyError:
        return None


def _differs(array: np.ndarray | None, other: np.ndarray | None) -> bool:
    return other is None or not np.array_equal(np.asarray(array), other)


@clips
def test_statistics_are_those_of_the_rows_that_count(name: str, form: str) -> None:
    model, feeds = model_as(name, form), _feeds(name, padding=3)
    first, *_, last = _text_sites(model)
    inputs = {model.graph.value(key): array for key, array in feeds.items()}
    for site in (first, last):
        (x,) = model.graph.evaluate([model.graph.value(site.input)], inputs)
        counter = np.arange(_LENGTH)
        counts = counter == _ends()[:, None] if site is last else counter <= _ends()[:, None]
        rows = x[counts].astype(np.float64)
        swapped = ns.swap(model, to="batchnorm", data=feeds, sites=site.name).model
        (norm,) = (s for s in ns.locate(swapped) if s.kind == "batch_norm")
        np.testing.assert_allclose(norm.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.variance, rows.var(0), rtol=1e-4)
