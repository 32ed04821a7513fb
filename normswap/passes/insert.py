"""Writing nodes: affine maps of a value in several shapes, transposes and casts where needed.

Constants are rounded to the value's dtype. Raises OutOfRange where that does not hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from normswap.fit.channelwise import BatchNormConstants
from normswap.graph.graph import Array, Graph, Node, Value
from normswap.passes.algebra.rounding import rounded, written


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
        "weight": (written, constants.weight),
        "bias": (rounded, constants.bias),
        "running_mean": (rounded, constants.mean),
        "running_var": (written, constants.variance),
    }
    parameters = [
        _constant(graph, form, array, x, f"{name}.{n}") for n, (form, array) in arrays.items()
    ]
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


def insert_scale_shift(
    graph: Graph, x: Value, scale: Array, shift: Array, name: str, like: Node | None
) -> Value:
    """``x * scale + shift``; both constants broadcast to the shape of ``x``."""
    factor = _constant(graph, written, scale, x, f"{name}.scale")
    scaled = graph.insert("Mul", [x, factor], name=f"{name}.scaled", like=like)
    term = _constant(graph, rounded, shift, x, f"{name}.shift")
    return graph.insert("Add", [scaled, term], name=f"{name}.shifted", like=like)


def insert_linear(
    graph: Graph, x: Value, axis: int, weight: Array, bias: Array, name: str, like: Node | None
) -> Value:
    """``weight @ x + bias`` along ``axis``, with transposes where it is not the last one.

    ``weight``: [out, in]; ``bias``: [out].
    """
    last = len(x.shape or ()) - 1
    perm = [i for i in range(last + 1) if i != axis] + [axis]
    inner = insert_transpose(graph, x, perm, f"{name}.channels_last", like)
    matrix = _constant(graph, written, weight.T, x, f"{name}.weight")
    product = graph.insert("MatMul", [inner, matrix], name=f"{name}.product", like=like)
    term = _constant(graph, rounded, bias, x, f"{name}.bias")
    total = graph.insert("Add", [product, term], name=name, like=like)
    back = [perm.index(i) for i in range(last + 1)]
    return insert_transpose(graph, total, back, f"{name}.channels_back", like)


def _constant(graph: Graph, form: Callable[..., Array], array: Array, x: Value, name: str) -> Value:
    """``array`` in the dtype of ``x``, by ``rounded`` or ``written``."""
    dtype = np.dtype(np.float32) if x.dtype is None else x.dtype
    return graph.add_constant(form(array, dtype, f"'{name}'"), name)


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
