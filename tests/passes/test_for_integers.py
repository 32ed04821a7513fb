"""Fits for a result that is to be quantised: ``for_='int8'``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.assets.digits import DIGITS_VIT, load_digits_split
from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.passes.balance import balance
from normswap.passes.calibrated import Calibrated
from normswap.precision.integers import INTEGER_FORMATS
from normswap.precision.quantised import QuantisedModel

C, HIDDEN, N = 8, 48, 6
PASSES = [ns.Affine, ns.Predicted, lambda **how: ns.BatchNorm(fit="least-squares", **how)]


class Net(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.up, self.down = nn.Linear(C, C), nn.Linear(C, HIDDEN), nn.Linear(HIDDEN, C)
        self.norm, self.last, self.head = nn.LayerNorm(C), nn.LayerNorm(C), nn.Linear(C, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lin(x)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.last(x)[:, 0])


def _rows(count: int, seed: int) -> dict[str, Array]:
    rows = np.random.default_rng(seed).standard_normal((count, N, C))
    return {"x": (rows + rows**2).astype(np.float32)}


@pytest.fixture(scope="module")
def model() -> Model:
    example = torch.randn(2, N, C)
    return ns.load(Net().eval(), example_inputs=(example,), dynamic_axes={"x": {0: "batch"}})


def test_writers_that_are_fitted_for_integers_survive_them() -> None:
    """Refitted without a thought of them, the weights of the digits ViT's second FFN layers are
    fifty times as large as before, and so is what rounding their inputs does."""
    vit, data = ns.load(DIGITS_VIT), load_digits_split()
    images = {"pixel_values": data.train_images[:400]}
    shares, largest = [], []
    for form in (None, "int8"):
        swapped = ns.swap(vit, ns.Affine(refit_writers=True, for_=form), data=images)
        folded = ns.fold(swapped.model).model
        (scores,) = QuantisedModel(folded, "int8", [images]).run({"pixel_values": data.test_images})
        shares.append(float((scores.argmax(1) == data.test_labels).mean()))
        weights = [folded.graph.constant(v) for v in folded.graph.values() if v.shape == (48, 192)]
        largest.append(max(float(np.abs(w).max()) for w in weights if w is not None))
    assert shares[1] > 0.93
    assert shares[1] > shares[0] + 0.1
    assert largest[0] > 4 * largest[1]


@pytest.mark.parametrize("kind", PASSES)
def test_agreement_is_that_of_the_quantised_model(model: Model, kind: type[Calibrated]) -> None:
    results = [
        ns.swap(model, kind(for_=form), data=_rows(200, 0)) for form in (None, "int8", "w4a8")
    ]
    figures = [r.agreement[0].sqnr_db for r in results if isinstance(r, ns.passes.base.NormsFitted)]
    assert figures[0] > figures[2]
    assert figures[1] > figures[2]
    assert figures[1] < figures[0] + 1


def test_what_is_ensured_is_the_quantised_model(model: Model) -> None:
    """In float32 all norms can go, with weights of four bits they cannot."""
    figures = []
    for form in (None, "w4a8"):
        result = ns.swap(model, ns.Predicted(for_=form), data=_rows(200, 0))
        assert isinstance(result, ns.passes.base.NormsFitted)
        figures.append(result.agreement[0].sqnr_db)
    least = f"sqnr>={np.mean(figures):.2f}"
    floating = ns.swap(model, ns.Predicted(ensure=least), data=_rows(200, 0))
    rounded = ns.swap(model, ns.Predicted(ensure=least, for_="w4a8"), data=_rows(200, 0))
    assert len(floating.done) == 2
    assert len(rounded.done) < 2
    assert rounded.kept


def test_another_format_is_refused() -> None:
    with pytest.raises(NormswapError, match=r"--for: 'int3' is none of int8"):
        ns.Affine(for_="int3")


def test_a_stream_of_few_loud_directions_is_balanced() -> None:
    """What reads it all but ignores these, and is large in the others, whose rounding it would
    multiply. The same function has bits more in other variables."""
    net = Net().eval()
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(C, C))[0]
        size = torch.tensor([30.0, *[1.0] * (C - 1)])
        net.lin.weight.copy_(turn @ torch.diag(size) @ turn.T)
        for reader in (net.up, net.head):
            reader.weight.copy_(reader.weight @ turn @ torch.diag(1 / size) @ turn.T)
    example, rows = torch.randn(2, N, C), _rows(200, 0)
    model = ns.load(net, example_inputs=(example,), dynamic_axes={"x": {0: "batch"}})
    swapped = ns.swap(model, ns.Affine(), data=rows)
    form = INTEGER_FORMATS["int8"]
    balanced, notes = balance(swapped.model, swapped.done, [rows], form)
    assert not notes
    before, after = (ns.fold(m).model for m in (swapped.model, balanced))
    held = _rows(50, 1)
    (expected,), (got,) = before.run(held).values(), after.run(held).values()
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    errors = []
    for folded in (before, after):
        (found,) = QuantisedModel(folded, "int8", [rows]).run(held)
        errors.append(float(np.square(found - expected).mean()))
    assert errors[1] < errors[0] / 10


def test_a_stream_that_only_gets_worse_stays(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = np.diag(np.geomspace(1, 50, C))
    monkeypatch.setattr("normswap.passes.balance._balancing", lambda *_: worse)
    swapped = ns.swap(model, ns.Affine(), data=_rows(200, 0))
    found, _ = balance(swapped.model, swapped.done, [_rows(200, 0)], INTEGER_FORMATS["int8"])
    assert found is swapped.model


def test_a_stream_that_a_norm_reads_stays(model: Model) -> None:
    first = model.sites[0]
    result = ns.swap(model, ns.Affine(sites=[first], for_="int8"), data=_rows(200, 0))
    assert result.done == [first]
    (note,) = (n for n in result.notes if "is not balanced" in n)
    assert "norm" in note
