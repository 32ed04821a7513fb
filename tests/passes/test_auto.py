"""The cheapest thing that can stand in the place of each norm, for a requirement."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.assets.digits import DIGITS_VIT, load_digits_split
from normswap.norms.site import Site
from normswap.passes.auto import GONE, KEPT, PREDICTED, _Search
from normswap.passes.base import NormsFitted, PassResult

_SITES = "*.layers.[01].*,*.layernorm"  # five of thirteen
_IMAGES = 200


def _images(held_back: bool | None = None) -> np.ndarray:
    images = load_digits_split().train_images[:_IMAGES]
    judged = np.arange(_IMAGES) % 5 == 4
    return images if held_back is None else images[judged == held_back]


def _cosine(model: ns.Model) -> float:
    """The mean cosine with the original's scores, on the images held back."""
    feeds = {"pixel_values": _images(held_back=True)}
    a, b = (m.run(feeds)["logits"].astype(float) for m in (ns.load(DIGITS_VIT), model))
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def _swapped(ensure: str) -> NormsFitted:
    result = ns.swap(ns.load(DIGITS_VIT), ns.Auto(ensure=ensure), data=_images(), sites=_SITES)
    assert isinstance(result, NormsFitted)
    return result


def test_what_stays_is_an_exact_rms_norm_and_the_requirement_is_met() -> None:
    result = _swapped("cosine>=0.999")
    assert result.done
    assert result.kept
    assert _cosine(result.model) >= 0.999
    kinds = [site.kind for site in ns.fold(result.model).model.sites]
    assert kinds.count("rms_norm") == len(result.kept)
    assert kinds.count("layer_norm") == 13 - len(result.done) - len(result.kept)
    assert all("it is an exact RMSNorm now" in reason for _, reason in result.kept)
    assert {fit.site.name for fit in result.fits} == {site.name for site in result.done}
    (output,) = result.agreement
    assert output.samples == 40
    assert output.cosine == pytest.approx(_cosine(result.model), abs=1e-5)
    (note,) = result.notes
    assert f"{len(result.done)} predicted, {len(result.kept)} kept for cosine >= 0.999" in note


def test_a_weak_requirement_lets_norms_go() -> None:
    result = _swapped("cosine>=0.97")
    assert not result.kept
    assert "an affine map" in {fit.form for fit in result.fits}
    assert _cosine(result.model) >= 0.97


def test_a_requirement_that_nothing_meets_keeps_all() -> None:
    how = ns.Auto(ensure="cosine>=1")
    result = ns.swap(ns.load(DIGITS_VIT), how, data=_images(), sites=_SITES)
    assert (result.done, len(result.kept)) == ([], 5)


class _Costs:
    """Stands for models: the sum of what each choice costs, against a limit."""

    def __init__(self, costs: Mapping[str, tuple[float, float]], limit: float) -> None:
        self.costs, self.limit, self.tried = costs, limit, 0

    def swap(self, choice: Mapping[Site, str]) -> PassResult:
        total = sum(
            {GONE: self.costs[s.name][0], PREDICTED: self.costs[s.name][1], KEPT: 0.0}[form]
            for s, form in choice.items()
        )
        return PassResult(total, True)  # type: ignore[arg-type]

    def meets(self, model: ns.Model) -> bool:
        self.tried += 1
        return model <= self.limit  # type: ignore[operator]


def test_the_search_takes_the_largest_limit_and_tries_each_kept_norm() -> None:
    sites = list(ns.load(DIGITS_VIT).sites)
    random = np.random.default_rng(0)
    for _ in range(50):
        predicted = random.lognormal(0, 1, len(sites))
        costs = {
            s.name: (float(p * random.uniform(1, 20)), float(p))
            for s, p in zip(sites, predicted, strict=True)
        }
        judge = _Costs(costs, float(random.uniform(0, 40)))
        losses = {s: costs[s.name] for s in sites}
        search = _Search(judge.swap, judge, losses, sites)  # type: ignore[arg-type]
        choice = search.found(None)
        total: float = search.result(choice).model  # type: ignore[assignment]
        assert total <= judge.limit
        for site in (s for s in sites if choice[s] == KEPT):
            assert total + costs[site.name][1] > judge.limit
        assert judge.tried <= 5 + len(sites)


def test_scores_of_each_position_are_scores() -> None:
    """A recogniser of text gives class scores per frame, which 'top1' is about as well."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(x))

    torch.manual_seed(0)
    x = torch.randn(60, 7, 16) * (0.5 + torch.rand(60, 7, 1))
    model = ns.load(Frames().eval(), example_inputs=(x[:2],))
    result = ns.swap(model, ns.Auto(ensure="top1>=0.9"), data=x.numpy())
    assert isinstance(result, NormsFitted)
    (output,) = result.agreement
    assert output.top1 is not None
    assert output.top1 >= 0.9


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "--to auto: chooses for a requirement; give --ensure"),
        ({"ensure": "top1>=0.9", "tokens": "class"}, "--to auto: fits all tokens together"),
    ],
)
def test_options_that_mean_nothing(how: dict[str, str], message: str) -> None:
    with pytest.raises(ns.NormswapError, match=message):
        ns.swap(ns.load(DIGITS_VIT), ns.Auto(**how), data=_images())  # type: ignore[arg-type]
