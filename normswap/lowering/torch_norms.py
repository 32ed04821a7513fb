"""Which of this project's kernels win on this machine."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Graph, Node
from normswap.graph.tensors import to_torch
from normswap.lowering.choice import choose, described
from normswap.lowering.kernel_times import ORIGINAL, measure_kernel
from normswap.model import Progress


def tune_kernels(graph: Graph, progress: Progress | None) -> list[str]:
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
