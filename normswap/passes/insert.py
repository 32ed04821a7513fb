"""Writing nodes: affine maps of a value in several shapes, transposes and casts where needed.

Constants are rounded to the value's dtype. Raises OutOfRange where that does not hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from normswap.fit.channelwise import BatchNormConstants
from normswap.graph.graph import Array, Graph, Node, Value
from normswap.passes.algebra.rounding import rounded, written

if TYPE_CHECKING:
    from normswap.fit.log_scale import LogScale


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
    graph: Graph,
    x: Value,
    axis: int,
    weight: Array,
    bias: Array | None,
    name: str,
    like: Node | None,
) -> Value:
    """``weight @ x + bias`` along ``axis``, with transposes where it is not the last one.

    ``weight``: [out, in]; ``bias``: [out], None for none.
    """
    last = len(x.shape or ()) - 1
    perm = [i for i in range(last + 1) if i != axis] + [axis]
    inner = insert_transpose(graph, x, perm, f"{name}.channels_last", like)
    matrix = _constant(graph, written, weight.T, x, f"{name}.weight")
    total = graph.insert("MatMul", [inner, matrix], name=f"{name}.product", like=like)
    if bias is not None:
        term = _constant(graph, rounded, bias, x, f"{name}.bias")
        total = graph.insert("Add", [total, term], name=name, like=like)
    back = [perm.index(i) for i in range(last + 1)]
    return insert_transpose(graph, total, back, f"{name}.channels_back", like)


def insert_log_scale(
    graph: Graph, x: Value, scale: LogScale, before: Value | None, name: str, like: Node | None
) -> Value:
    """What ``scale`` predicts for each token of ``x`` [..., C], from ``before`` [..., 1] as well;
    [..., 1]."""
    name = f"{name}.log_scale"

    def insert(op: str, first: Value, second: Value, called: str) -> Value:
        return graph.insert(op, [first, second], name=f"{name}.{called}", like=like)

    def constant(array: Array, called: str, form: Callable[..., Array] = written) -> Value:
        return _constant(graph, form, array, x, f"{name}.{called}")

    total = insert("MatMul", x, constant(scale.linear[:, None], "linear"), "product")
    if scale.absolute.size:
        towards = insert("MatMul", x, constant(scale.directions, "directions"), "towards")
        size = graph.insert("Abs", [towards], name=f"{name}.size", like=like)
        sizes = insert("MatMul", size, constant(scale.absolute[:, None], "absolute"), "sizes")
        total = insert("Add", total, sizes, "sum")
    if before is not None:
        earlier = insert("Mul", before, constant(np.array(scale.before), "factor"), "earlier")
        total = insert("Add", total, earlier, "sum")
    total = insert("Add", total, constant(np.array(scale.constant), "constant", rounded), "shifted")
    bounds = {"min": scale.low, "max": scale.high}
    return graph.insert("Clip", [total], bounds, name=name, like=like)


def insert_centred(graph: Graph, x: Value, name: str, like: Node | None) -> Value:
    """``x`` [..., C] less the mean over its channels, which is a product with a constant."""
    size = (x.shape or ())[-1]
    weight = _constant(graph, written, np.full((size, 1), 1 / size), x, f"{name}.one_over_size")
    mean = graph.insert("MatMul", [x, weight], name=f"{name}.mean", like=like)
    return graph.insert("Sub", [x, mean], name=f"{name}.centred", like=like)


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
