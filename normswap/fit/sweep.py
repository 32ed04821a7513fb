"""One sweep of the calibration data through a graph that is edited on the way.

The original graph runs beside the edited one, so that each edit can be fitted to what the original
computes there from the same data. In both a frontier of activations moves forward from one stop to
the next: every operator runs once per batch, whatever the number of stops.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.fit.activations import MEMORY, Activations, Kept
from normswap.fit.frontier import Batches, Frontier
from normswap.fit.processes import first_number
from normswap.graph.graph import Array, Graph, Value

HELD_OUT = 5
"""Every fifth sample is held out where a strength is chosen."""


@dataclass(frozen=True)
class Example:
    """A value's ``shape`` (None: unknown) at the model's example inputs of ``count`` samples."""

    shape: tuple[int, ...] | None
    count: int


class Readings:
    """What the data gives at a stop: per batch one array for each of the stop's ``reads`` in the
    edited graph and then for each of its ``targets`` in the original one. May be read repeatedly.

    ``samples``: of each batch the numbers of its samples within all the data. ``examples``: of
    each array.
    """

    def __init__(
        self,
        kept: Sequence[Sequence[Kept]],
        samples: Sequence[Array],
        examples: Sequence[Example],
    ) -> None:
        self._kept = kept
        self.samples = samples
        self.examples = examples

    def __iter__(self) -> Iterator[list[Array]]:
        return ([k.array() for k in batch] for batch in self._kept)


class Stop(abc.ABC):
    """An edit that follows from what the data gives at some values.

    ``reads``: values of the graph that is edited, as they were called before any edit; ``targets``:
    values of the original.
    """

    reads: tuple[Value, ...]
    targets: tuple[Value, ...] = ()

    @abc.abstractmethod
    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        """Edits the graph behind ``reads`` (the values that stand there by now).

        What ``reads`` depend on must stay. Returns what replaces what, for the stops to come.
        """


def sweep(
    original: Graph,
    graph: Graph,
    batches: Batches,
    stops: Sequence[Stop],
    memory: int = MEMORY,
) -> Iterator[Stop]:
    """Stops at each of ``stops`` in the order of the graph, yielding it when it has edited.

    ``graph``: a copy of ``original``, to be edited. ``memory``: the bytes of activations that are
    held in memory at most, beside those of the batch that is running; the rest waits in a file.
    """
    stops = _ordered(graph, stops)
    samples = _numbered(batches)
    count = next(s[0] for name in batches[0] if (s := graph.value(name).shape))
    replaced: dict[Value, Value] = {}
    with Activations(memory) as store:
        edited = Frontier(graph, batches, store)
        reference = Frontier(original, batches, store)
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


def _current(value: Value, replaced: Mapping[Value, Value]) -> Value:
    while value in replaced:
        value = replaced[value]
    return value


def _ordered(graph: Graph, stops: Sequence[Stop]) -> list[Stop]:
    position = {output: i for i, node in enumerate(graph.nodes) for output in node.outputs}
    return sorted(stops, key=lambda s: max(position.get(v, -1) for v in s.reads))


def _numbered(batches: Batches) -> list[Array]:
    """The numbers of each batch's samples; those of earlier processes come first."""
    numbers: list[Array] = []
    start = first_number(sum(len(next(iter(batch.values()))) for batch in batches))
    for batch in batches:
        count = len(next(iter(batch.values())))
        numbers.append(np.arange(start, start + count))
        start += count
    return numbers
