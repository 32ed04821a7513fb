"""One sweep of the calibration data through a graph that is edited on the way.

The original graph runs beside the edited one, so that each edit can be fitted to what the original
computes there from the same data. In both a frontier of activations moves forward from one stop to
the next: every operator runs once per batch, whatever the number of stops.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.fit.activations import MEMORY, Activations, Kept
from normswap.fit.calibration import Batches, first_number
from normswap.graph.graph import Array, Graph, Value

HELD_OUT = 5
"""Every fifth sample is held out where a strength is chosen."""


@dataclass(frozen=True)
class Example:
    """A value's ``shape`` (None: unknown) at the model's example inputs of ``count`` samples."""

    shape: tuple[int, ...] | None
    count: int


class Readings:
    """The arrays at a stop: per batch one for each of its ``reads`` in the edited graph, then one
    for each of its ``targets`` in the original one. May be read repeatedly.

    ``samples``: for each batch the indices of its samples within all the data. ``examples``: for
    each array its shape at the example inputs.
    """

    def __init__(
        self, kept: Sequence[Sequence[Kept]], samples: Sequence[Array], examples: Sequence[Example]
    ) -> None:
        self._kept = kept
        self.samples = samples
        self.examples = examples

    def __iter__(self) -> Iterator[list[Array]]:
        return ([k.array() for k in batch] for batch in self._kept)


class Stop(abc.ABC):
    """An edit whose constants are fitted to the data at some values.

    ``reads``: values of the edited graph, as they were before any edit; ``targets``: values of the
    original.
    """

    reads: tuple[Value, ...]
    targets: tuple[Value, ...] = ()

    @abc.abstractmethod
    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        """Edits the graph after ``reads``, which are the values that are there by now.

        What ``reads`` depend on must stay. Returns the values that were replaced, each with its
        replacement, for later stops.
        """


def sweep(
    original: Graph, graph: Graph, batches: Batches, stops: Sequence[Stop], memory: int = MEMORY
) -> Iterator[Stop]:
    """Runs the edit of each of ``stops`` in the order of the graph, yielding the stop after it.

    ``graph``: a copy of ``original``, to be edited. ``memory``: the most bytes of activations that
    are held in memory, beside those of the running batch; the rest goes to a file.
    """
    stops = _ordered(graph, stops)
    samples = _numbered(batches)
    count = next(s[0] for name in batches[0] if (s := graph.value(name).shape))
    replaced: dict[Value, Value] = {}
    with Activations(memory) as store:
        edited = _Frontier(graph, batches, store)
        reference = _Frontier(original, batches, store)
        for index, stop in enumerate(stops):
            reads = [_current(v, replaced) for v in stop.reads]
            ahead = [_current(v, replaced) for s in stops[index + 1 :] for v in s.reads]
            edited.advance(reads, ahead)
            kept = edited.kept(reads)
            reference.advance(stop.targets, [v for s in stops[index + 1 :] for v in s.targets])
            kept = [a + b for a, b in zip(kept, reference.kept(stop.targets), strict=True)]
            examples = [Example(v.shape, count) for v in (*reads, *stop.targets)]
            replaced |= stop.edit(reads, Readings(kept, samples, examples))
            yield stop


class _Frontier:
    """Holds, for every batch, the values of ``graph`` that later operators still need."""

    def __init__(self, graph: Graph, batches: Batches, store: Activations) -> None:
        self._graph = graph
        self._store = store
        self._known = [
            {graph.value(name): store.borrow(array) for name, array in batch.items()}
            for batch in batches
        ]

    def advance(self, targets: Sequence[Value], ahead: Sequence[Value]) -> None:
        """Moves to ``targets``; of the rest keeps what the values ``ahead`` need."""
        held = set(self._known[0])
        now = set(self._graph.ancestors(targets, stop=held))
        # What an edit inserts at the targets reads them, so they stay until the next move.
        later = [n for n in self._graph.ancestors(ahead, stop=held) if n not in now]
        wanted = {v for node in later for v in node.dynamic_inputs()} | {*ahead, *targets}
        reads = {v for node in now for v in node.dynamic_inputs()}
        produced = [v for node in now for v in node.outputs if v in wanted]
        inputs = [v for v in self._known[0] if v in reads]
        run = self._graph.slice(inputs, produced) if produced else None
        for values in self._known:
            results = run([values[v].array() for v in inputs]) if run is not None else []
            for value in [v for v in values if v not in wanted]:
                values.pop(value).drop()
            values.update({v: self._store.keep(a) for v, a in zip(produced, results, strict=True)})

    def kept(self, values: Sequence[Value]) -> list[list[Kept]]:
        """For every batch its arrays of ``values``, at which the frontier is."""
        return [[known[v] for v in values] for known in self._known]


def _current(value: Value, replaced: Mapping[Value, Value]) -> Value:
    while value in replaced:
        value = replaced[value]
    return value


def _ordered(graph: Graph, stops: Sequence[Stop]) -> list[Stop]:
    position = {output: i for i, node in enumerate(graph.nodes) for output in node.outputs}
    return sorted(stops, key=lambda s: max(position.get(v, -1) for v in s.reads))


def _numbered(batches: Batches) -> list[Array]:
    """The indices of each batch's samples; those of earlier processes come first."""
    sizes = [len(next(iter(batch.values()))) for batch in batches]
    bounds = first_number(sum(sizes)) + np.cumsum([0, *sizes])
    return [np.arange(start, end) for start, end in itertools.pairwise(bounds)]
