"""A model rounded to integers, against the same by hand, and in ``validate``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.precision.integers import INTEGER_FORMATS, Range
from normswap.precision.quantised import QuantisedModel
from normswap.precision.ranges import _Sums
from normswap.report.html.page import write_html
from tests.passes.fold_checks import KINDS, captured

C, N = 8, 5


class Net(nn.Module):
    """A residual block whose stream a linear layer and an addition read, an attention, and a
    convolution, which ONNX Runtime does not have in float64."""

    def __init__(self, conv: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.lin2, self.head = (nn.Linear(C, C) for _ in range(3))
        self.conv = nn.Conv1d(C, C, 3, padding=1, groups=2) if conv else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.lin2(torch.relu(self.lin(x)))
        weights = torch.softmax(x @ x.transpose(1, 2), -1)
        y = self.head(x + weights @ x)
        return y if self.conv is None else y + self.conv(x.transpose(1, 2)).transpose(1, 2)


def _rows(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((4, N, C))


def _by_hand(form: str, x: Array, calibration: Array, conv: bool) -> Array:
    """The same model in numpy."""
    net, shape = Net(conv).double(), INTEGER_FORMATS[form]
    found: dict[str, list[Array]] = {}

    def run(x: Array, rounds: bool) -> Array:
        def read(name: str, array: Array) -> Array:
            if not rounds:
                found.setdefault(name, []).append(array)
                return array
            low, high = min(found[name][0].min(), 0), max(found[name][0].max(), 0)
            step = (high - low) / 255
            zero = np.round(-low / step)
            return np.asarray((np.clip(np.round(array / step) + zero, 0, 255) - zero) * step)

        def weight(layer: nn.Module) -> Array:
            array = layer.weight.detach().numpy()  # type: ignore[operator, union-attr]
            if not rounds:
                return np.asarray(array)
            most = 2 ** (shape.weight_bits - 1) - 1
            axes = tuple(range(1, array.ndim)) if shape.per_channel else None
            step = np.abs(array).max(axis=axes, keepdims=True) / most
            return np.asarray(np.round(array / step) * step)

        def linear(layer: nn.Linear, name: str, array: Array) -> Array:
            return np.asarray(read(name, array) @ weight(layer).T + layer.bias.detach().numpy())

        y = linear(net.lin2, "hidden", np.maximum(linear(net.lin, "x", x), 0)) + x
        scores = read("y", y) @ read("moved", y).transpose(0, 2, 1)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        total = y + read("weights", powers / powers.sum(-1, keepdims=True)) @ read("y", y)
        result = linear(net.head, "total", total)
        if net.conv is None:
            return result
        moved = torch.from_numpy(read("moved", y).transpose(0, 2, 1).copy())
        bias = net.conv.bias
        convolved = torch.conv1d(moved, torch.from_numpy(weight(net.conv)), bias, 1, 1, 1, 2)
        return np.asarray(result + convolved.detach().numpy().swapaxes(1, 2))

    run(calibration, False)
    return run(x, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", INTEGER_FORMATS)
def test_it_rounds_as_by_hand(form: str, kind: str) -> None:
    conv = kind == "fx"
    model = captured(Net(conv), torch.randn(2, N, C), kind)
    before = model.run({"x": _rows()})
    quantised = QuantisedModel(model, form, [{"x": _rows(1)[:2]}, {"x": _rows(1)[2:]}])
    (got,) = quantised.run({"x": _rows(2)})
    assert np.allclose(got, _by_hand(form, _rows(2), _rows(1), conv), atol=1e-9)
    (plain,) = model.run({"x": _rows(2)}).values()
    assert np.abs(got - plain).max() > 1e-3
    same = zip(before.values(), model.run({"x": _rows()}).values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)


@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(2, 8))
def test_0_and_the_ends_of_a_range_are_held(low: float, high: float, bits: int) -> None:
    within = Range.of([np.array([low, high])])
    numbers = np.linspace(within.low - 1, within.high + 1, 101)
    found = within.rounded(numbers, bits)
    inside = (numbers >= within.low) & (numbers <= within.high)
    assert len(np.unique(found)) <= 2**bits
    assert within.rounded(np.zeros(1), bits)[0] == 0
    assert np.abs(found - numbers)[inside].max(initial=0) <= within.step(bits) * (1 + 1e-9)


def test_a_value_that_is_not_finite_has_no_range() -> None:
    model = captured(Net(), torch.randn(2, N, C), "fx")
    with pytest.raises(NormswapError, match="is not finite on the calibration data"):
        QuantisedModel(model, "int8", [{"x": np.full((2, N, C), np.nan)}])
    with pytest.raises(NormswapError, match="none of the formats int8"):
        QuantisedModel(model, "int7", [{"x": _rows()}])


def test_validate_tells_how_it_was_rounded() -> None:
    model = captured(Net(), torch.randn(2, N, C), "fx")
    report = ns.validate(model, model, data={"x": _rows()}, simulate="int8")
    other = ns.validate(
        model, model, data={"x": _rows()}, simulate="int8", calibration={"x": 9 * _rows(3)}
    )
    assert report.candidate.runtime == "weights int8 per tensor, activations int8"
    figures = [r.outputs[0].sqnr_db for r in (report, other)]
    assert figures[0] is not None
    assert figures[1] is not None
    assert 20 < figures[1] < figures[0] < 60
    for wrong in (None, "float16"):
        with pytest.raises(NormswapError, match="calibration data is for integers"):
            ns.validate(model, model, data={"x": _rows()}, simulate=wrong, calibration=_rows())


def test_the_page_shows_the_ranges_before_and_after(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C)).eval()
    net[1].weight.data[3] = 50.0
    model = ns.load(net, example_inputs=(torch.randn(2, N, C),))
    rows = {model.inputs[0].name: _rows()[:2].astype(np.float32)}
    smooth = ns.swap(model, ns.Smooth(scales="one-range"), data=rows).model
    report = ns.validate(model, smooth, data=rows, simulate="int8")
    (site,) = report.ranges
    before, after = site.gives_ratio
    assert after is not None
    assert before > 10 > 2 > after
    assert report.to_json()["ranges"][0]["gives_ratio"] == [before, after]
    write_html(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Ranges of channels" in page
    assert f"{before:.3g}" in page


def test_channels_are_measured_as_by_hand() -> None:
    net = nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C)).eval()
    net[1].weight.data[3] = 50.0
    model = ns.load(net, example_inputs=(torch.randn(2, N, C),))
    array = _rows()[:2].astype(np.float32)
    found = ns.ranges(model, data={model.inputs[0].name: array})
    with torch.no_grad():
        given = net[:2](torch.from_numpy(array)).numpy().reshape(-1, C).astype(np.float64)
    (norm,) = found.norms
    largest = np.abs(given).max(0)
    centred = given - given.mean()
    assert norm.gives.channel == 3
    assert norm.gives.ratio == pytest.approx(largest.max() / np.median(largest), rel=1e-5)
    kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
    assert norm.gives.kurtosis == pytest.approx(kurtosis, rel=1e-4)
    assert "over median" in str(found)


def test_kurtosis_keeps_its_digits_at_a_large_mean() -> None:
    rows = np.random.default_rng(0).standard_normal((4000, 8))
    found = []
    for mean in (0.0, 1e5):
        sums = _Sums()
        for part in np.array_split(rows + mean, 5):
            sums.add(part)
        found.append(sums.result().kurtosis)
    assert found[1] == pytest.approx(found[0], rel=1e-6)
