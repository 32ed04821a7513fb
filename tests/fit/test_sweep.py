"""One sweep runs every operator once, whatever it is asked for and wherever its values wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import normswap as ns
from normswap.fit import sweep as sweep_module
from normswap.fit.activations import Activations
from normswap.fit.sweep import Stop, sweep
from normswap.graph.graph import Array, Graph, Runner, Value
from normswap.passes import calibrated
from tests.zoo.exports import FX, model_as

_MODEL = "timm_dinov2_reg"
_FORMS = (FX, "torchscript-17")
_SWAPS: dict[str, ns.BatchNorm | ns.Affine] = {
    "batchnorm": ns.BatchNorm(ffn_batchnorm=True),
    "affine": ns.Affine(refit_writers=True),
}


def _images(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return 1 + random.standard_normal((count, 3, 32, 32)).astype(np.float32)


def _split(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Lets calibration run in batches of ``size``."""

    def batches(_model: ns.Model, _sites: object, data: Any) -> list[dict[str, Array]]:
        return list(data.batches(size))

    monkeypatch.setattr(calibrated, "calibration_batches", batches)


def _counting(graph: Graph, counts: Counter[str]) -> None:
    """Counts the runs of every operator of ``graph`` that computes something from the data."""
    slice_ = graph.slice

    def counted(inputs: Sequence[Value], outputs: Sequence[Value], dtype: Any = None) -> Runner:
        nodes = graph.ancestors(outputs, stop=inputs)
        names = [n.output.name for n in nodes if not n.output.is_constant]
        run = slice_(inputs, outputs, dtype)

        def counted_run(arrays: Sequence[Array]) -> list[Array]:
            counts.update(names)
            return run(arrays)

        return counted_run

    graph.slice = counted  # type: ignore[method-assign]


@pytest.mark.parametrize("swap", _SWAPS)
@pytest.mark.parametrize("form", _FORMS)
def test_every_operator_runs_once_per_batch(
    monkeypatch: pytest.MonkeyPatch, form: str, swap: str
) -> None:
    counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    stops = []

    def counted(original: Graph, graph: Graph, *rest: Any) -> Iterator[Stop]:
        for side, tally in zip((original.copy(), graph), counts, strict=True):
            _counting(side, tally)
        _counting(original, counts[0])
        for stop in sweep(original, graph, *rest):
            stops.append(stop)
            yield stop

    monkeypatch.setattr(calibrated, "sweep", counted)
    _split(monkeypatch, 3)
    ns.swap(model_as(_MODEL, form).copy(), _SWAPS[swap], data=_images(9))
    assert len(stops) == {"batchnorm": 7, "affine": 9}[swap]
    original, edited = counts
    for tally in (original, edited):
        assert len(tally) > 20
        assert set(tally.values()) == {3}, tally.most_common(3)


@pytest.mark.parametrize("swap", _SWAPS)
@pytest.mark.parametrize("form", _FORMS)
def test_where_activations_wait_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, form: str, swap: str
) -> None:
    model = model_as(_MODEL, form)
    spilled = []

    class Watched(Activations):
        def __exit__(self, *error: Any) -> None:
            spilled.append(self.spilled)
            super().__exit__(*error)

    monkeypatch.setattr(sweep_module, "Activations", Watched)
    _split(monkeypatch, 4)
    outputs = [
        ns.swap(model, replace(_SWAPS[swap], memory=memory), data=_images(10)).model.run(
            {model.inputs[0].name: _images(3)}
        )
        for memory in (0, 50_000, 1 << 30)
    ]
    assert spilled[0] >= spilled[1] > spilled[2] == 0
    for got in outputs[:2]:
        for name, array in outputs[2].items():
            assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("swap", _SWAPS)
def test_how_data_is_split_into_batches_only_rounds(
    monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    model = model_as(_MODEL, FX)
    outputs = []
    for size in (10, 4, 1):
        _split(monkeypatch, size)
        swapped = ns.swap(model, _SWAPS[swap], data=_images(10)).model
        (array,) = swapped.run({"x": _images(3)}).values()
        outputs.append(array)
    size = np.abs(outputs[0]).max()
    for array in outputs[1:]:
        np.testing.assert_allclose(array, outputs[0], atol=1e-4 * size, rtol=0)
