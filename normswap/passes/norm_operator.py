"""One operator in place of a located norm, however that was spelled."""

from __future__ import annotations

from typing import Any

import numpy as np

from normswap.graph.graph import Array, Graph, Value, is_floating
from normswap.norms.site import Site
from normswap.passes.insert import insert_cast, insert_transpose

OPERATORS = {"layer_norm": "LayerNormalization", "rms_norm": "RMSNormalization"}


def replace_norm(graph: Graph, site: Site, spelled: Site) -> Value:
    """The operator of the kind, weight and bias of ``site`` where the graph has ``spelled``; what
    takes the place of its output.

    An operator without a bias of its own (RMSNormalization) gets an Add behind it. Norms over
    other axes than the last ones get transposes, such whose constants the dtype cannot hold casts.
    """
    x, old = graph.value(spelled.input), graph.value(spelled.output)
    like, name, rank = old.producer, f"{site.name}.output", len(old.shape or ())
    dtype = working_dtype(x, old, site)
    perm = (*(a for a in range(rank) if a not in site.axes), *site.axes)
    value = insert_cast(graph, x, dtype, f"{site.name}.cast", like)
    value = insert_transpose(graph, value, perm, f"{site.name}.axes_last", like)
    weight = parameter(graph, spelled, site.weight, f"{site.name}.weight", dtype)
    bias = parameter(graph, spelled, site.bias, f"{site.name}.bias", dtype)
    takes_bias = site.kind == "layer_norm"
    inputs = [value, weight, bias] if takes_bias else [value, weight]
    attributes = {"axis": rank - len(site.axes), "epsilon": site.epsilon}
    value = graph.insert(OPERATORS[site.kind], inputs, attributes, name=name, like=like)
    if bias is not None and not takes_bias:
        value = graph.insert("Add", [value, bias], name=f"{site.name}.shifted", like=like)
    back = tuple(perm.index(axis) for axis in range(rank))
    value = insert_transpose(graph, value, back, f"{site.name}.axes_back", like)
    value = insert_cast(graph, value, old.dtype, f"{site.name}.cast_back", like)
    graph.replace_uses(old, value)
    return value


def working_dtype(x: Value, y: Value, site: Site) -> np.dtype[Any]:
    """That of input and output, if they agree and it holds the constants; else at least float32."""
    given = [v.dtype for v in (x, y) if v.dtype is not None]
    constants = [a for a in (site.weight, site.bias, site.mean, site.variance) if a is not None]
    if len(set(given)) == 1 and all(_holds(given[0], array) for array in constants):
        return given[0]
    return np.result_type(np.float32, *(d for d in given if d.itemsize > 2))


def _holds(dtype: np.dtype[Any], array: Array) -> bool:
    if dtype.itemsize > 2:
        return True
    return is_floating(dtype) and bool(np.all(array.astype(dtype).astype(np.float64) == array))


def parameter(
    graph: Graph, spelled: Site, array: Array | None, name: str, dtype: np.dtype[Any]
) -> Value | None:
    """The norm's own parameter where it is the one, so that its name stays; else a new one."""
    if array is None:
        return None
    nodes = graph.ancestors([graph.value(spelled.output)], stop=[graph.value(spelled.input)])
    for value in (v for node in nodes for v in node.inputs if v is not None):
        if value.is_constant and value.shape == array.shape and value.dtype == dtype:
            own = graph.constant(value)
            if own is not None and np.array_equal(own, array):
                return value
    return graph.add_constant(array.astype(dtype), name)
