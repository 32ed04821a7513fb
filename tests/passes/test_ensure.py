"""``ensure``: the fewest norms stay for which the result is as close to the original as asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import normswap as ns
from normswap.assets.digits import DIGITS_VIT, load_digits_split
from normswap.norms import Site
from normswap.parity.requirement import Judge, Requirement
from normswap.passes.base import PassResult
from normswap.passes.ensure import swap_ensuring
from tests.zoo.exports import FX, model_as, zoo_model

_SITES = "*.layers.[01].*,*.layernorm"  # five of thirteen
_IMAGES = 200


@functools.lru_cache
def _digits_vit() -> ns.Model:
    return ns.load(DIGITS_VIT)


def _images(held_back: bool | None = None) -> np.ndarray:
    """The calibration images: all, the fifth that is held back to judge by, or the others."""
    images = load_digits_split().train_images[:_IMAGES]
    judged = np.arange(_IMAGES) % 5 == 4
    return images if held_back is None else images[judged == held_back]


def _agreement(model: ns.Model) -> float:
    """The share of the images held back that get the class which the original gives them."""
    feeds = {"pixel_values": _images(held_back=True)}
    classes = [next(iter(m.run(feeds).values())).argmax(1) for m in (_digits_vit(), model)]
    return float((classes[0] == classes[1]).mean())


def _swap(data: Any = None, sites: str = _SITES, ensure: str | None = None) -> PassResult:
    how = ns.BatchNorm(fit="copy", ensure=ensure)
    return ns.swap(_digits_vit(), how, data=_images() if data is None else data, sites=sites)


def test_the_fewest_norms_stay_and_the_requirement_is_met() -> None:
    every = _swap(data=_images(held_back=False))
    reached = _agreement(every.model)
    least = reached + 0.03  # more than all sites reach
    result = _swap(ensure=f"top1>={least}")
    assert _agreement(result.model) >= least
    kept = [site.name for site, _ in result.kept]
    done = [site.name for site in result.done]
    assert 0 < len(kept) < 5
    assert sorted(kept + done) == sorted(site.name for site in every.done)
    assert {site.name for site in ns.locate(result.model) if site.kind == "layer_norm"} >= set(kept)
    for _, reason in result.kept:
        expected = f"kept for top1 >= {least:g}: with all sites swapped top1 is {reached:.4g}"
        assert reason == expected
    (note,) = result.notes
    assert note.startswith(f"{len(kept)} of 5 norms stay for top1 >= {least:g}, which is now ")
    assert f"{_agreement(result.model):.4g} on 40 samples that no fit has seen" in note
    assert all(name in note for name in kept)

    for name in kept:  # fitted anew to the same data, none of them could have gone as well
        other = _swap(data=_images(held_back=False), sites=",".join([*done, name]))
        assert _agreement(other.model) < least, name


def test_nothing_stays_where_the_requirement_is_met_anyway() -> None:
    result = _swap(ensure="top1>=0.5")
    assert (len(result.done), result.kept, result.notes) == (5, [], [])
    reference = _swap(data=_images(held_back=False))
    feeds = {"pixel_values": _images(held_back=True)}
    for got, expected in zip(
        result.model.run(feeds).values(), reference.model.run(feeds).values(), strict=True
    ):
        np.testing.assert_array_equal(got, expected)  # the images to judge by took no part


def test_all_stay_where_nothing_else_would_do() -> None:
    result = _swap(ensure="cosine>=1")
    assert (result.modified, result.done, len(result.kept)) == (False, [], 5)
    assert result.model is _digits_vit()


@pytest.mark.parametrize("name", ["hf_clip", "open_clip_clip"])
@pytest.mark.parametrize("form", [FX, "torchscript-14"])
def test_images_alone_give_a_clip_no_classes(name: str, form: str) -> None:
    model, zoo = model_as(name, form), zoo_model(name)
    shape = (20, *zoo.inputs[zoo.image].shape[1:])
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    data = {zoo.image: images}
    with pytest.raises(ns.NormswapError, match="no output with class scores") as caught:
        ns.swap(model, ns.BatchNorm(ensure="top1>=0.5"), data=data)
    assert "try cosine>=" in str(caught.value)
    assert "\n" not in str(caught.value)
    result = ns.swap(model, ns.BatchNorm(ensure="cosine>=-1"), data=data)
    assert (len(result.done), result.kept) == (6, [])


def test_the_classes_of_a_clip_are_its_texts() -> None:
    model, zoo = model_as("hf_clip", FX), zoo_model("hf_clip")
    random = np.random.default_rng(0)
    data = {"pixel_values": random.standard_normal((10, 3, 16, 16)).astype(np.float32)}
    data |= {n: np.resize(zoo.inputs[n], (10, 12)) for n in ("input_ids", "attention_mask")}
    batches = [{key: array[8:] for key, array in data.items()}]
    judge = Judge(model, batches, Requirement("top1", 1.0))
    assert judge.measure(model) == 1.0
    other = ns.swap(model, to="batchnorm", data=data).model
    scores = [next(iter(m.run(batches[0]).values())) for m in (model, other)]
    assert scores[0].shape == (2, 2)
    expected = (scores[0].argmax(1) == scores[1].argmax(1)).mean()
    assert judge.measure(other) == expected


@pytest.mark.parametrize(
    ("count", "said"), [(1, "one sample is too few"), (4, "--ensure: 4 samples are too few")]
)
def test_too_few_samples_to_keep_one_back(count: int, said: str) -> None:
    with pytest.raises(ns.NormswapError, match=said):
        _swap(data=_images()[:count], ensure="top1>=0.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top1", "is no requirement"),
        ("", "is no requirement"),
        ("top9>=1", "is no requirement"),
        ("top1>0.5", "is no requirement"),
        ("top1>=", "is no requirement"),
        ("top1>=1e999", "is no requirement"),
        ("top1>=--1", "is no requirement"),
        ("top1>=0.9 and cosine>=0.9", "is no requirement"),
        ("cosine>=nan", "is no requirement"),
        ("top1>=1.5", "top1 is never above 1, got 1.5"),
        ("cosine>=2", "cosine is never above 1, got 2"),
    ],
)
def test_what_is_no_requirement_is_refused_before_any_work(text: str, message: str) -> None:
    with pytest.raises(ns.NormswapError, match=message) as caught:
        ns.swap(_digits_vit(), ns.Affine(ensure=text), data=_images())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1>=0.99", Requirement("top1", 0.99)),
        (" Top1 >= 1 ", Requirement("top1", 1.0)),
        ("cosine>=-.5", Requirement("cosine", -0.5)),
        ("sqnr>=2.5e1", Requirement("sqnr", 25.0)),
        ("sqnr>=-10", Requirement("sqnr", -10.0)),
    ],
)
def test_requirements(text: str, expected: Requirement) -> None:
    assert Requirement.parse(text) == expected


class _Rules:
    """A judge by the sets of norms that stay; of swaps that only remember these."""

    requirement = Requirement("top1", 0.5)
    samples = 10

    def __init__(self, meets: Callable[[frozenset[int]], bool], costs: Sequence[float]) -> None:
        self._meets, self._costs = meets, costs
        self.sites = cast(list[Site], [SimpleNamespace(name=str(i)) for i in range(len(costs))])

    def swap(self, sites: Sequence[Site]) -> PassResult:
        kept = frozenset(int(s.name) for s in self.sites if s not in sites)
        return PassResult(cast(ns.Model, kept), True, list(sites))

    def meets(self, model: Any) -> bool:
        everything = frozenset(range(len(self.sites)))
        return self._meets(model if isinstance(model, frozenset) else everything)

    def error(self, model: Any) -> float:
        (swapped,) = frozenset(range(len(self.sites))) - model
        return self._costs[swapped]

    def measure(self, model: Any) -> float:
        return float(self.meets(model))

    def kept(self) -> set[int]:
        model = cast(ns.Model, "the original")
        result = swap_ensuring(model, self.sites, self.swap, cast(Judge, self), None)
        return {int(site.name) for site, _ in result.kept}


def test_the_costliest_stay() -> None:
    assert _Rules(lambda kept: len(kept) >= 2, [3, 1, 5, 2]).kept() == {0, 2}


def test_what_is_not_needed_goes_although_it_costs_most() -> None:
    assert _Rules(lambda kept: {1, 3} <= kept, [3, 1, 5, 2]).kept() == {1, 3}


def test_what_can_go_only_after_another_goes_too() -> None:
    """A norm that stays is not always better than one that goes: fits depend on each other."""
    sets = [{0, 1, 2}, {0, 2}, {0}]  # 2 has to stay as long as 1 does
    assert _Rules(lambda kept: set(kept) in sets, [3, 2, 1]).kept() == {0}
