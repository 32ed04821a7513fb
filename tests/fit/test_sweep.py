"""One sweep runs every operator once, and holds only what later stops need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.fit import sweep as sweep_module
from normswap.fit.activations import Activations
from normswap.fit.calibration import Batches
from normswap.fit.sweep import Readings, Stop, sweep
from normswap.graph.graph import Array, Graph, Runner, Value
from normswap.passes import calibrated
from normswap.passes.insert import insert_scale_shift
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
        for side in (original, graph):  # what is measured afterwards does not count
            del side.slice

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


class _Stream(nn.Module):
    """A residual stream: every layer reads it and adds to it, the last also what came first."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x.exp()
        stream = first
        for layer in self.layers:
            stream = stream + layer(stream.tanh())
        return stream * first


class _Scale(Stop):
    """Puts 2 x + 1 in place of x, and keeps what it read as it was at that time."""

    def __init__(self, graph: Graph, *reads: Value, targets: Sequence[Value] = ()) -> None:
        self.graph, self.reads, self.targets = graph, reads, tuple(targets)
        self.seen: list[list[Array]] = []

    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        self.seen = [[array.copy() for array in batch] for batch in readings]
        replaced = {}
        for value in reads:
            two, one = np.full(1, 2, np.float32), np.ones(1, np.float32)
            new = insert_scale_shift(self.graph, value, two, one, "scaled", value.producer)
            keep = value.readers[-1]  # what was just inserted
            self.graph.replace_uses(value, new, keep=[keep])
            replaced[value] = new
        return replaced


def _batches(*shape: int, count: int = 3) -> Batches:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def _loaded(module: nn.Module, *shape: int) -> ns.Model:
    return ns.load(module.eval(), example_inputs=(torch.zeros(*shape),))


def _named(graph: Graph, op: str) -> list[Value]:
    return [node.output for node in graph.nodes if node.op == op]


def test_each_stop_sees_the_edits_before_it_and_the_untouched_original() -> None:
    model = _loaded(_Stream(2), 4, 8)
    edited = model.copy()
    batches = _batches(4, 8)
    reads, targets = _named(edited.graph, "Tanh"), _named(model.graph, "Linear")
    stops = [_Scale(edited.graph, r, targets=[t]) for r, t in zip(reads, targets, strict=True)]
    assert list(sweep(model.graph, edited.graph, batches, stops[::-1])) == stops  # in its order
    first, second = (layer for layer in _weights(model))
    for batch, seen, later in zip(batches, stops[0].seen, stops[1].seen, strict=True):
        x = np.exp(batch["x"])
        np.testing.assert_allclose(seen[0], np.tanh(x), rtol=1e-5)
        np.testing.assert_allclose(seen[1], first(np.tanh(x)), rtol=1e-4, atol=1e-6)
        changed = x + first(2 * np.tanh(x) + 1)
        np.testing.assert_allclose(later[0], np.tanh(changed), rtol=1e-4, atol=1e-6)
        plain = x + first(np.tanh(x))
        np.testing.assert_allclose(later[1], second(np.tanh(plain)), rtol=1e-4, atol=1e-6)


def _weights(model: ns.Model) -> list[Any]:
    parameters = dict(model.to_torch().named_parameters())
    pairs = [
        [parameters[f"layers.{i}.{n}"].detach().numpy() for n in ("weight", "bias")] for i in (0, 1)
    ]
    return [lambda x, w=w, b=b: x @ w.T + b for w, b in pairs]


@pytest.mark.parametrize("memory", [0, 700, 1 << 20])
def test_values_that_are_views_of_others_survive(memory: int) -> None:
    """An operator such as Reshape may hand on its input's memory, which is then let go."""

    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = [x.exp(), x.tanh(), x.sigmoid(), x.relu()]
            parts = [p.reshape(4, 2, 4) for p in parts]
            parts = [p.transpose(1, 2) for p in parts]
            parts = [p.unsqueeze(0) for p in parts]
            return parts[0] * parts[1] + parts[2] * parts[3]

    model = _loaded(Views(), 4, 8)
    graph = model.copy().graph
    batches = _batches(4, 8)
    ops = ("Exp", "Tanh", "Sigmoid", "Relu"), ("Reshape",), ("Transpose",), ("Unsqueeze",)
    groups = [[v for op in names for v in _named(graph, op)] for names in ops]
    assert [len(group) for group in groups] == [4, 4, 4, 4]
    stops = [_Read(group) for group in groups]
    for _ in sweep(model.graph, graph, batches, stops, memory):
        pass
    for stop in stops:
        run = model.graph.slice(
            [model.graph.value("x")], [model.graph.value(v.name) for v in stop.reads]
        )
        for batch, seen in zip(batches, stop.seen, strict=True):
            for got, expected in zip(seen, run([batch["x"]]), strict=True):
                np.testing.assert_array_equal(got, expected)


class _Read(Stop):
    """Reads and edits nothing."""

    def __init__(self, reads: Sequence[Value]) -> None:
        self.reads = tuple(reads)
        self.seen: list[list[Array]] = []

    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        self.seen = [[array.copy() for array in batch] for batch in readings]
        return {}


def _peak(monkeypatch: pytest.MonkeyPatch, depth: int) -> int:
    """The most bytes held at any time in a sweep with a stop in every layer."""
    held = [0]

    class Watched(Activations):
        def keep(self, array: Array) -> Any:
            kept = super().keep(array)
            held.append(self.held)
            return kept

    monkeypatch.setattr(sweep_module, "Activations", Watched)
    model = _loaded(_Stream(depth), 4, 8)
    edited = model.copy()
    layers = _named(edited.graph, "Tanh"), _named(model.graph, "Tanh")
    stops = [_Scale(edited.graph, r, targets=[t]) for r, t in zip(*layers, strict=True)]
    for _ in sweep(model.graph, edited.graph, _batches(4, 8), stops):
        pass
    return max(held)


def test_what_is_held_does_not_grow_with_the_number_of_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = 3 * 4 * 8 * 4  # bytes of one value of all batches
    peaks = [_peak(monkeypatch, depth) for depth in (3, 6, 12)]
    assert peaks[0] == peaks[1] == peaks[2]
    assert peaks[0] <= 8 * one  # the stream and its tanh in two graphs, before and after a step
