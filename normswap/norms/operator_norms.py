"""Norms that are one operator of the graph."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.graph.operators import operator
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
        kind = node.operator.norm
        if kind and not node.data_input().is_constant:
            is_batch_norm = kind == "batch_norm"
            result = _batch_norm(graph, node, taken) if is_batch_norm else _norm(graph, node)
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
    return bool(operator(op).norm) or operator(op).root == "square"


def _norm(graph: Graph, node: Node) -> Site | str:
    x = node.data_input()
    affine, known = _parameters(graph, node.inputs[1:3])
    if not known:
        return "its scale or shift is computed by the graph"
    if x.shape is None:
        return "the shape of its input is unknown"
    rank, kind = len(x.shape), node.operator.norm
    groups = node.attributes.get("num_groups") if kind == "group_norm" else None
    first = 1 if groups else 2 if kind == "instance_norm" else rank - 1
    axes = tuple(range(node.attributes.get("axis", first), rank))
    shape = tuple(x.shape[axis] for axis in axes)
    if "axis" in node.attributes:  # its parameters may be of any shape that broadcasts
        shaped = [_of_shape(array, shape) for array in affine]
        if any(a is None and b is not None for a, b in zip(shaped, affine, strict=True)):
            return VARYING
        affine = shaped
    weight, bias = (*affine, None, None)[:2]
    return Site(
        name=site_name([node], node.inputs[1:3]),
        kind=kind,
        axes=axes,
        normalized_shape=shape,
        epsilon=_epsilon(node),
        weight=weight,
        bias=bias,
        groups=groups,
        input=x.name,
        output=node.output.name,
        spelling="op",
    )


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
    parameters, known = _parameters(graph, node.inputs[1:5])
    weight, bias, mean, variance = (*parameters, None, None)[:4]
    x, y, axis = node.data_input(), node.output, 1
    if not known or x.shape is None:
        return "its parameters or the shape of its input are not constant"
    if mean is None or variance is None:
        return TRAINING
    if any(p is not None and p.ndim != 1 for p in parameters):
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
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    return float(str(np.float32(epsilon))) if float(np.float32(epsilon)) == epsilon else epsilon


def _parameters(graph: Graph, values: list[Value | None]) -> tuple[list[Array | None], bool]:
    """Each parameter in float64 (None where absent), and whether all are constants."""
    if any(v is not None and not v.is_constant for v in values):
        return [None] * 4, False
    arrays = [graph.constant(v) if v is not None else None for v in values]
    return [None if a is None else a.astype(np.float64) for a in arrays], True
