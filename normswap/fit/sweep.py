"""One sweep of the calibration data through a graph that is edited on the way.

The activations of all batches are held at a frontier that moves forward from one measured value to
the next, so each operator runs once per batch, whatever the number of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from normswap.fit.moments import ChannelMoments
from normswap.graph.graph import Array, Graph, Value

Batches = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class Stop:
    """A value to measure per channel of ``axis``, and the edit of the graph that follows from it.

    ``edit`` gets the value that stands there by then and its moments. It replaces one value by
    another and returns both; what lies before the measured value must stay.
    """

    value: Value
    axis: int
    edit: Callable[[Value, ChannelMoments], tuple[Value, Value]]


def sweep(graph: Graph, batches: Batches, stops: Sequence[Stop]) -> Iterator[Stop]:
    """Measures and edits at each of ``stops`` (in topological order), yielding it when done."""
    known = [{graph.value(n): a for n, a in batch.items()} for batch in batches]
    replaced: dict[Value, Value] = {}
    for index, stop in enumerate(stops):
        ahead = [replaced.get(s.value, s.value) for s in stops[index:]]
        moments = ChannelMoments()
        known = _advance(graph, known, ahead, moments, stop.axis)
        old, new = stop.edit(ahead[0], moments)
        replaced[old] = new
        yield stop


def _advance(
    graph: Graph,
    known: list[dict[Value, Array]],
    ahead: Sequence[Value],
    moments: ChannelMoments,
    axis: int,
) -> list[dict[Value, Array]]:
    """Moves the frontier to ``ahead[0]``, measures it, and drops what nothing later reads."""
    target, held = ahead[0], set(known[0])
    now = set(graph.ancestors([target], stop=held))
    later = [n for n in graph.ancestors(ahead, stop=held) if n not in now]
    wanted = {v for node in later for v in node.dynamic_inputs()} | set(ahead)
    produced = [v for node in now for v in node.outputs if v in wanted]
    reads = {v for node in now for v in node.dynamic_inputs()}
    inputs = [v for v in known[0] if v in reads]
    run = graph.slice(inputs, produced) if produced else None
    moved = []
    while known:
        values = known.pop(0)
        kept = {v: a for v, a in values.items() if v in wanted}
        if run is not None:
            results = run([values[v] for v in inputs])
            kept.update(zip(produced, results, strict=True))
        moments.add(kept[target], axis)
        moved.append(kept)
    return moved


def measure(
    graph: Graph, batches: Batches, values: Sequence[tuple[Value, int]]
) -> list[ChannelMoments]:
    """The moments of several values of an unedited graph: (value, channel axis) each."""
    moments = [ChannelMoments() for _ in values]
    inputs = [graph.value(name) for name in batches[0]]
    outputs = [value for value, _ in values]
    needed = {v for node in graph.ancestors(outputs) for v in node.dynamic_inputs()}
    inputs = [v for v in inputs if v in needed]
    run = graph.slice(inputs, outputs)
    for batch in batches:
        arrays = run([batch[v.name] for v in inputs])
        for moment, array, (_, axis) in zip(moments, arrays, values, strict=True):
            moment.add(array, axis)
    return moments
