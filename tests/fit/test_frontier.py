"""The frontier of a sweep: what stops read, and what is held between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from normswap.graph.graph import Array, Graph, Value
from normswap.passes.insert import insert_scale_shift


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
