"""Which norms of an FX graph run as this project's kernels in inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from normswap.graph.graph import Graph, Node, Value
from normswap.model import Progress
from normswap.norms.site import Site

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
    notes = []
    if tune:
        from normswap.lowering.torch_norms import tune_kernels  # needs torch

        notes = tune_kernels(graph, progress)
    running = graph.kernels()
    chosen = {site: running[node] for site, node in nodes.items() if node in running}
    told = [f"{n} norms run as {k} in inference" for k, n in Counter(chosen.values()).items()]
    return chosen, [*told, *notes]


def _operator(value: Value) -> Node | None:
    node = value.origin.producer
    return node if node is not None and node.op in _OPERATORS else None
