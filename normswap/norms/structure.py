"""The structure of a model that says what a norm does: its towers, its residual connections, and
the feed-forward networks among these.

Read from the graph alone: nothing depends on the names of modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Graph, Node, Value, is_floating
from normswap.graph.linear import Linear, linear_writing
from normswap.norms.site import Site

_BLOCK = 1000  # operators in the branch of a residual connection, at most
_IMAGE_RANK = 4


# -- towers ----------------------------------------------------------------------------------------


def towers(graph: Graph) -> dict[Value, str]:
    """The tower of every value whose data comes from an image or from a text.

    'image': from a floating input of rank 4. 'text': from an integer input that is an index into a
    constant table. 'both': from inputs of both kinds. Masks and sizes are no data.
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
    """Whether the value is an index into a constant table, perhaps after moves."""
    pending = [value]
    while pending:
        for node, index in pending.pop().uses:
            if node.op == "Gather" and index == 1 and node.data_input().is_constant:
                return True
            if node.operator.passes_through:
                pending.extend(node.outputs)
    return False


# -- residual connections --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Residual:
    """A residual connection, the sum ``skip + branch`` with a product somewhere in the branch.

    Attributes:
        add: the node of the sum.
        skip: the operand that the branch starts from, before any moves.
        branch: the other operand.
        inside: the values that ``branch`` is computed from, as far back as ``skip``.
        attends: whether there is an attention in the branch.
    """

    add: Node
    skip: Value
    branch: Value
    inside: frozenset[Value]
    attends: bool


def residuals(graph: Graph) -> list[Residual]:
    """The residual connections of a graph, in the order of execution."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    connections = []
    for node in graph.nodes:
        operands = node.dynamic_inputs()
        if node.op != "Add" or len(operands) != 2:
            continue
        if any(v.shape is None or v.shape != node.output.shape for v in operands):
            continue
        for skip, branch in (operands, operands[::-1]):
            residual = _residual(node, skip.origin, branch, position)
            if residual is not None:
                connections.append(residual)
                break
    return connections


def is_attention(node: Node) -> bool:
    """Whether it is a fused attention, a softmax, or a product of two computed values."""
    if node.operator.attention:
        return True
    return node.operator.product in ("matrix", "einsum") and len(_computed(node)) > 1


def is_product(node: Node) -> bool:
    """Whether it is a product of one computed value with constants."""
    return _multiplies(node) and len(_computed(node)) == 1


def _multiplies(node: Node) -> bool:
    return bool(node.operator.product) or node.operator.attention == "fused"


def _computed(node: Node) -> set[Value]:
    """The inputs that depend on more than constants and sizes."""
    return {v for v in node.dynamic_inputs() if not v.origin.is_constant}


def _residual(add: Node, skip: Value, branch: Value, position: dict[Node, int]) -> Residual | None:
    start = position[skip.producer] if skip.producer else -1
    inside: set[Value] = set()
    nodes: set[Node] = set()
    closes = False
    pending = [branch]
    while pending:
        value = pending.pop()
        node = value.producer
        if value is skip or value.origin is skip:
            closes = True
            continue
        if value in inside or node is None or position[node] < start:
            continue
        if node.operator.reads_sizes_only:
            continue
        if len(inside) > _BLOCK:
            return None
        inside.add(value)
        nodes.add(node)
        pending.extend(node.dynamic_inputs())
    if not closes or not any(_multiplies(n) or is_attention(n) for n in nodes):
        return None
    return Residual(add, skip, branch, frozenset(inside), any(is_attention(n) for n in nodes))


# -- feed-forward networks -------------------------------------------------------------------------


@dataclass(frozen=True)
class Ffn:
    """The feed-forward network (MLP) of a block: its linear layers, whatever lies between them.

    Attributes:
        first: the layers that read the stream: one, two of a SwiGLU whose layers are apart.
        second: the layer that writes to the residual stream.
    """

    first: tuple[Linear, ...]
    second: Linear


def ffn_of(graph: Graph, residuals: Sequence[Residual], site: Site) -> Ffn | None:
    """The feed-forward network that ``site``, a ``pre_mlp`` or ``post_mlp`` norm, belongs to.

    None if it is not made of two stages of linear layers.
    """
    x, y = graph.value(site.input), graph.value(site.output)
    for residual in residuals:
        is_its = y in residual.inside or x.origin is residual.add.output
        if is_its and not residual.attends:
            second = _last_linear(graph, residual.branch)
            first = None if second is None else _first_linears(graph, second.input, residual)
            if second is not None and first:
                return Ffn(first, second)
    return None


def _last_linear(graph: Graph, value: Value) -> Linear | None:
    """The linear layer that computes ``value``, perhaps with norms, scales and moves behind it."""
    while True:
        linear = linear_writing(graph, value)
        if linear is not None:
            return linear
        node = value.producer
        if node is None or is_product(node) or len(node.dynamic_inputs()) != 1:
            return None
        value = node.dynamic_inputs()[0]


def _first_linears(graph: Graph, value: Value, residual: Residual) -> tuple[Linear, ...] | None:
    """The linear layers that ``value`` is computed from, activations and products in between."""
    layers: dict[Value, Linear] = {}
    pending, seen = [value], set[Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        linear = linear_writing(graph, value)
        if linear is not None:
            layers[linear.output] = linear
            continue
        node = value.producer
        if node is None or value not in residual.inside or is_product(node) or is_attention(node):
            return None
        pending.extend(node.dynamic_inputs())
    return tuple(layers.values())
