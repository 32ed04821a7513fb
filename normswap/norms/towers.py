"""Which tower of a model a value belongs to: decided by the inputs that it depends on."""

from __future__ import annotations

import numpy as np

from normswap.graph.arrays import is_floating
from normswap.graph.graph import Graph, Value

_IMAGE_RANK = 4


def towers(graph: Graph) -> dict[Value, str]:
    """'image', 'text' or 'both' for every value whose data comes from such inputs.

    An image is a floating input of rank 4; text is an integer input that indexes a constant
    table. Masks and sizes do not count.
    """
    sources: dict[Value, frozenset[str]] = {}
    for value in graph.inputs:
        kind = _input_kind(value)
        sources[value] = frozenset([kind] if kind else [])
    for node in graph.nodes:
        reads = [] if node.operator.reads_sizes_only else node.dynamic_inputs()
        merged = frozenset().union(*(sources.get(v, frozenset()) for v in reads))
        sources.update(dict.fromkeys(node.outputs, merged))
    return {
        v: "both" if len(kinds) == 2 else next(iter(kinds)) for v, kinds in sources.items() if kinds
    }


def _input_kind(value: Value) -> str | None:
    if value.dtype is None:
        return None
    if is_floating(value.dtype):
        return "image" if value.rank == _IMAGE_RANK else None
    if np.issubdtype(value.dtype, np.integer) and _is_token_ids(value):
        return "text"
    return None


def _is_token_ids(value: Value) -> bool:
    """Whether the value indexes a constant table, casts and reshapes in between allowed."""
    pending = [value]
    while pending:
        for node, index in pending.pop().uses:
            if node.op == "Gather" and index == 1 and node.data_input().is_constant:
                return True
            if node.operator.passes_through:
                pending.extend(node.outputs)
    return False
