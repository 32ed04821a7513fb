"""Whether a norm in half precision works at all on ordinary values."""

from __future__ import annotations

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Value
from normswap.locate.evaluation import bounded

_ELEMENTS = 400_000


def overflows_in_half(graph: Graph, entry: Value, exit_value: Value) -> bool:
    """Whether the region overflows in its own dtypes where float64 shows a norm.

    One run on values of unit scale, and only where something is float16. A runtime that refuses
    the region shows nothing.
    """
    nodes = graph.ancestors([exit_value], stop=[entry])
    values = [entry, *(v for node in nodes for v in node.outputs)]
    if not any(v.dtype == np.float16 for v in values) or entry.dtype is None:
        return False
    shape = bounded(entry.shape or (), _ELEMENTS)
    x = np.random.default_rng(0).standard_normal(shape).astype(entry.dtype)
    try:
        (y,) = graph.slice([entry], [exit_value])([x])
    except (NormswapError, ValueError, RuntimeError, IndexError, TypeError):
        return False
    return not bool(np.all(np.isfinite(y.astype(np.float64))))
