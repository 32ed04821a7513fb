"""Writing nodes: a BatchNorm over any axis of a value, transposes and casts where needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from normswap.fit.batch_norm import BatchNormConstants
from normswap.graph.graph import Graph, Node, Value


def insert_batch_norm(
    graph: Graph, x: Value, axis: int, constants: BatchNormConstants, name: str, like: Node | None
) -> tuple[Value, list[Node]]:
    """A BatchNormalization of ``x`` over ``axis``, with transposes around it where the operator
    (channels on axis 1) needs them; its result and the new nodes that read ``x``.
    """
    rank = len(x.shape or ())
    perm = (0, axis, *(i for i in range(1, rank) if i != axis))
    inner = insert_transpose(graph, x, perm, f"{name}.channels_first", like)
    arrays = {
        "weight": constants.weight,
        "bias": constants.bias,
        "running_mean": constants.mean,
        "running_var": constants.variance,
    }
    parameters = [graph.add_constant(a.astype(x.dtype), f"{name}.{n}") for n, a in arrays.items()]
    normed = graph.insert(
        "BatchNormalization",
        [inner, *parameters],
        {"epsilon": constants.epsilon, "training_mode": 0},
        name=f"{name}",
        like=like,
    )
    back = tuple(perm.index(i) for i in range(rank))
    result = insert_transpose(graph, normed, back, f"{name}.channels_last", like)
    first = normed.producer if inner is x else inner.producer
    return result, [n for n in [first] if n is not None]


def insert_transpose(
    graph: Graph, x: Value, perm: Sequence[int], name: str, like: Node | None
) -> Value:
    """``x`` with its axes in the order ``perm``; itself where that is its own."""
    if tuple(perm) == tuple(range(len(perm))):
        return x
    return graph.insert("Transpose", [x], {"perm": tuple(perm)}, name=name, like=like)


def insert_cast(
    graph: Graph, x: Value, dtype: np.dtype[Any] | None, name: str, like: Node | None
) -> Value:
    """``x`` as ``dtype``; itself where it is that already."""
    if dtype is None or x.dtype == dtype:
        return x
    return graph.insert("Cast", [x], {"to": dtype}, name=name, like=like)
