"""The activations of all batches at a frontier that moves forward through a graph.

Each operator runs once per batch, however many values are asked for on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from normswap.fit.activations import Activations, Kept
from normswap.graph.graph import Array, Graph, Value

Batches = Sequence[Mapping[str, Array]]


class Frontier:
    """Holds, for every batch, the values of ``graph`` that what lies ahead still needs."""

    def __init__(self, graph: Graph, batches: Batches, store: Activations) -> None:
        self._graph = graph
        self._store = store
        self._known = [
            {graph.value(name): store.borrow(array) for name, array in batch.items()}
            for batch in batches
        ]

    def advance(self, targets: Sequence[Value], ahead: Sequence[Value]) -> None:
        """Moves to ``targets``; of the rest keeps what ``ahead`` (values still to come) needs."""
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
        """For every batch its arrays of ``values``, which the frontier stands at."""
        return [[known[v] for v in values] for known in self._known]
