"""Which norms of an FX graph run as this project's kernels in inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from normswap.graph.arrays import to_torch
from normswap.graph.graph import Graph, Node, Value
from normswap.locate.passthrough import root
from normswap.locate.site import Site
from normswap.progress import Progress
from normswap.tuning.choice import choose, described
from normswap.tuning.kernels import ORIGINAL, measure_kernel

_OPERATORS = ("LayerNormalization", "RMSNormalization")


def use_kernels(
    graph: Graph, norms: Mapping[Site, str], tune: bool, progress: Progress | None
) -> tuple[dict[Site, str], list[str]]:
    """Lets ``norms`` (by the names of their values) run as kernels; which ones do, and notes.

    In a graph of another kind none do. With ``tune`` only those do that are measured to be faster
    here, and as accurate.
    """
    nodes = {site: _operator(graph.value(name)) for site, name in norms.items()}
    graph.use_kernels(n for n in nodes.values() if n is not None)
    notes = _tune(graph, progress) if tune else []
    running = graph.kernels()
    chosen = {site: running[node] for site, node in nodes.items() if node in running}
    told = [f"{n} norms run as {k} in inference" for k, n in Counter(chosen.values()).items()]
    return chosen, [*told, *notes]


def _operator(value: Value) -> Node | None:
    node = root(value).producer
    return node if node is not None and node.op in _OPERATORS else None


def _tune(graph: Graph, progress: Progress | None) -> list[str]:
    """Takes away from every norm the kernels that do not win, until those left have won."""
    notes: dict[str, None] = {}
    lost: dict[Node, set[str]] = {}
    settled: set[tuple[Node, str]] = set()
    while todo := [(n, k) for n, k in graph.kernels().items() if (n, k) not in settled]:
        for number, (node, kernel) in enumerate(todo):
            if progress:
                progress(number, len(todo), "measuring")
            settled.add((node, kernel))
            shape, dtype = node.output.shape or (), node.output.dtype
            measured = measure_kernel(kernel, shape, to_torch(np.empty(0, dtype)).dtype)
            taken = choose(measured, kernel)
            size = "x".join(str(s) for s in shape)
            notes[f"norms of {size} {dtype}: {taken}; {described(measured, ORIGINAL)}"] = None
            if taken != kernel:
                lost.setdefault(node, set()).add(kernel)
                graph.use_kernels([node], besides=lost[node])
        if progress:
            progress(len(todo), len(todo), "measuring")
    return list(notes)
