"""Norms that are one operator of the graph."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.locate.names import site_name
from normswap.locate.site import Site

_KINDS = {
    "LayerNormalization": "layer_norm",
    "RMSNormalization": "rms_norm",
    "InstanceNormalization": "instance_norm",
    "GroupNormalization": "group_norm",
    "BatchNormalization": "batch_norm",
}


def operator_norms(graph: Graph) -> list[Site]:
    """A site for each norm operator with constant parameters."""
    sites = []
    for node in graph.nodes:
        if node.op in _KINDS and not node.data_input().is_constant:
            site = (
                _batch_norm(graph, node) if node.op == "BatchNormalization" else _norm(graph, node)
            )
            if site is not None:
                sites.append(site)
    return sites


def _norm(graph: Graph, node: Node) -> Site | None:
    x = node.data_input()
    affine, known = _parameters(graph, node.inputs[1:3])
    if not known or x.shape is None:
        return None
    rank = len(x.shape)
    axes = tuple(range(node.attributes.get("axis", 2), rank))
    weight, bias = (*affine, None, None)[:2]
    return Site(
        name=site_name([node], node.inputs[1:3]),
        kind=_KINDS[node.op],
        axes=axes,
        normalized_shape=tuple(x.shape[axis] for axis in axes),
        epsilon=_epsilon(node),
        weight=weight,
        bias=bias,
        input=x.name,
        output=node.output.name,
        spelling="op",
    )


def _batch_norm(graph: Graph, node: Node) -> Site | None:
    """An evaluation-mode BatchNorm; transposes that bring its channels to axis 1 belong to it."""
    (weight, bias, mean, variance), known = _parameters(graph, node.inputs[1:5])
    x, y, axis = node.data_input(), node.output, 1
    if not known or x.shape is None or mean is None or variance is None:
        return None
    before = x.producer
    after = y.uses[0][0] if len(y.uses) == 1 and y not in graph.outputs else None
    if before is not None and after is not None and before.op == after.op == "Transpose":
        there, back = before.attributes["perm"], after.attributes["perm"]
        if tuple(there[axis] for axis in back) == tuple(range(len(there))):
            x, y, axis = before.data_input(), after.output, there[1]
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
