"""Writing a BatchNorm over any axis of a value."""

from __future__ import annotations

from normswap.fit.batch_norm import BatchNormConstants
from normswap.graph.graph import Graph, Node, Value


def insert_batch_norm(
    graph: Graph, x: Value, axis: int, constants: BatchNormConstants, name: str, like: Node | None
) -> tuple[Value, list[Node]]:
    """A BatchNormalization of ``x`` over ``axis``, with transposes around it where the operator
    (channels on axis 1) needs them; its result and the new nodes that read ``x``.
    """
    rank = len(x.shape or ())
    channels_first = axis == 1
    perm = (0, axis, *(i for i in range(1, rank) if i != axis))
    inner = (
        x
        if channels_first
        else graph.insert(
            "Transpose", [x], {"perm": perm}, name=f"{name}.channels_first", like=like
        )
    )
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
    if channels_first:
        return normed, [n for n in [normed.producer] if n is not None]
    back = tuple(perm.index(i) for i in range(rank))
    result = graph.insert(
        "Transpose", [normed], {"perm": back}, name=f"{name}.channels_last", like=like
    )
    return result, [n for n in [inner.producer] if n is not None]
