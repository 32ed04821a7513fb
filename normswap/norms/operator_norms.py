"""Norms that are one operator of the graph."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.graph.operators import operator
from normswap.norms.constants import known_constant
from normswap.norms.site import Rejection, Site, site_name

TRAINING = "it normalises by the batch's own statistics"
"""The reason for which a BatchNorm in training mode is rejected."""
VARYING = "its scale or shift differs from row to row"
"""The reason for which an operator is rejected whose parameters broadcast along other axes."""
PER_ELEMENT = "its parameters are those of each element, not of each channel"
"""The reason for which a BatchNorm with ``spatial = 0`` (before opset 9) is rejected."""


def operator_norms(graph: Graph, covered: Container[Node]) -> tuple[list[Site], list[Rejection]]:
    """The norms of ``graph`` that are one operator, and those that are left alone, with the reason.

    A norm operator is left alone if its weight, bias or statistics are computed by the graph, if it
    is in the body of another operator, or if only a runtime knows it. ``covered``: nodes that are
    part of another norm.
    """
    sites, rejected = [], []
    taken: set[Node] = set()
    for node in graph.nodes:
        if node in covered:
            continue
        kind = node.operator.normalises
        if kind and node.inputs and not node.data_input().is_constant:
            is_batch_norm = kind == "batch_norm"
            result = _batch_norm(graph, node, taken) if is_batch_norm else _norm(graph, node, kind)
        elif hidden := sorted(op for op in node.nested if _may_be_norm(op)):
            inside = ", ".join(hidden)
            result = f"{inside} in the body of {node.op}, which may run or not, is left as it is"
        elif "." in node.op and "Norm" in node.op.rpartition(".")[2]:
            result = f"{node.op} is an operator that only its runtime knows; export without it"
        else:
            continue
        if isinstance(result, Site):
            sites.append(result)
        else:
            rejected.append(Rejection(node.scope or node.output.name, result))
    return sites, rejected


def _may_be_norm(op: str) -> bool:
    """Whether an operator in the body of another is a norm, or may be part of one."""
    return bool(operator(op).normalises) or operator(op).root == "square"


def _norm(graph: Graph, node: Node, kind: str) -> Site | str:
    row, x = node.operator, _normalised(graph, node)
    shape = node.output.shape or (x.shape if x.dtype and is_floating(x.dtype) else None)
    affine = node.inputs[row.scale : row.scale + (1 if kind == "rms_norm" else 2)]
    parameters = _parameters(graph, affine)
    if isinstance(parameters, str):
        return parameters
    if shape is None:
        return "the shape of its input is unknown"
    axes, rank = _axes(node, kind, len(shape)), len(shape)
    if not axes or axes[0] < 0 or axes[-1] >= rank:
        return "its axes are not those of its input"
    if axes[0] == 0 and rank > 1 and row.beside:
        return TRAINING
    if kind == "layer_norm" and "axes" in node.attributes and rank > 3:
        kind = "instance_norm" if axes == tuple(range(2, rank)) else kind
    sizes = tuple(shape[axis] for axis in axes)
    if "axis" in node.attributes:  # its parameters may be of any shape that broadcasts
        shaped = [_of_shape(array, sizes) for array in parameters]
        if any(a is None and b is not None for a, b in zip(shaped, parameters, strict=True)):
            return VARYING
        parameters = shaped
    weight, bias = (*parameters, None, None)[:2]
    return Site(
        name=site_name([node], affine),
        kind=kind,
        axes=axes,
        normalized_shape=sizes,
        epsilon=_epsilon(node),
        weight=weight,
        bias=bias,
        groups=_groups(node) if kind == "group_norm" else None,
        input=x.name,
        output=node.output.name,
        spelling="op",
        fixed=f"{row.name} {row.beside}" if row.beside else "",
    )


def _axes(node: Node, kind: str, rank: int) -> tuple[int, ...]:
    """The axes that the operator normalises, in order, as the file has them."""
    given = node.attributes.get("axes")
    if given is not None:
        return tuple(sorted(given))
    first = {"group_norm": 1, "instance_norm": 2}.get(kind, rank - 1)
    return tuple(range(node.attributes.get("axis", first), rank))


def _groups(node: Node) -> int | None:
    """How many groups, by the name that ONNX or ONNX Runtime has for it."""
    return node.attributes.get("num_groups", node.attributes.get("groups"))


def _normalised(graph: Graph, node: Node) -> Value:
    """What is normalised: the sum where the operator yields one, else what it reads first."""
    row = node.operator
    if row.norm_with_sum and len(node.outputs) > row.sum_output:
        total = node.outputs[row.sum_output]
        if total.uses or total in graph.outputs:
            return total
    return node.data_input()


def _of_shape(array: Array | None, shape: tuple[int, ...]) -> Array | None:
    """A parameter as one number for each that is normalised; None where rows have their own."""
    if array is None:
        return None
    lead = max(array.ndim - len(shape), 0)
    if any(size != 1 for size in array.shape[:lead]):
        return None
    try:
        return np.broadcast_to(array.reshape(array.shape[lead:]), shape).copy()
    except ValueError:
        return None


def _batch_norm(graph: Graph, node: Node, taken: set[Node]) -> Site | str:
    """A BatchNorm with running statistics; transposes that bring its channels to axis 1 belong
    to it, unless they are ``taken`` by the one before."""
    parameters = _parameters(graph, node.inputs[1:5])
    x, y, axis = node.data_input(), node.output, 1
    if isinstance(parameters, str):
        return parameters
    weight, bias, mean, variance = (*parameters, None, None)[:4]
    if x.shape is None:
        return "the shape of its input is unknown"
    if mean is None or variance is None:
        return TRAINING
    if any(a is not None and a.ndim != 1 for a in (weight, bias, mean, variance)):
        return PER_ELEMENT
    before = x.producer
    after = y.uses[0][0] if len(y.uses) == 1 and y not in graph.outputs else None
    before = None if before in taken else before
    if before is not None and after is not None and before.op == after.op == "Transpose":
        there, back = before.attributes["perm"], after.attributes["perm"]
        if tuple(there[axis] for axis in back) == tuple(range(len(there))):
            x, y, axis = before.data_input(), after.output, there[1]
            taken.add(after)
    return Site(
        name=site_name([node], node.inputs[1:3]),
        kind="batch_norm",
        axes=(axis,),
        normalized_shape=mean.shape,
        epsilon=_epsilon(node),
        weight=weight,
        bias=bias,
        mean=mean,
        variance=variance,
        input=x.name,
        output=y.name,
        spelling="op",
    )


def _epsilon(node: Node) -> float:
    """Files store float32: the shortest decimal that is the same float32 is what was meant."""
    epsilon = float(node.attributes.get("epsilon", 0.0))
    return float(str(np.float32(epsilon))) if float(np.float32(epsilon)) == epsilon else epsilon


def _parameters(graph: Graph, values: list[Value | None]) -> list[Array | None] | str:
    """Each parameter in float64 (None where absent), or why that is not known."""
    if any(v is not None and not v.is_constant for v in values):
        return "its parameters are computed by the graph"
    arrays = [None if v is None else known_constant(graph, v) for v in values]
    for value, array in zip(values, arrays, strict=True):
        if value is not None and array is None:
            return f"what its parameter '{value.name}' holds cannot be computed"
    return [None if a is None else a.astype(np.float64) for a in arrays]
