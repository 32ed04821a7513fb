"""The structure of a model that says what a norm does: its towers, its residual connections, and
the feed-forward networks among these.

Read from the graph alone: nothing depends on the names of modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Graph, Node, Value, is_floating
from normswap.graph.linear import Linear, linear_writing
from normswap.norms.site import Site

_BLOCK = 1000  # operators in the branch of a residual connection, at most
_STAGE = 2  # residual connections inside another one that make it a skip around a stage
_IMAGE_RANK = 4


# -- towers ----------------------------------------------------------------------------------------


def towers(graph: Graph) -> dict[Value, str]:
    """The tower of every value whose data comes from an image or from a text.

    'image': from a floating input of rank 4. 'text': from an integer input that is an index into a
    constant table. 'both': from inputs of both kinds. Masks and sizes are no data.
    """
    image, text = (
        graph.descendants(v for v in graph.inputs if _input_kind(v) == kind)
        for kind in ("image", "text")
    )
    return (
        dict.fromkeys(image, "image")
        | dict.fromkeys(text, "text")
        | dict.fromkeys(image & text, "both")
    )


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
            if node.operator.norm_with_sum and index == 0:  # of embeddings that it looks up
                return True
            if node.operator.passes_through:
                pending.extend(node.outputs)
    return False


# -- residual connections --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Residual:
    """A residual connection, the sum ``skip + branch`` with a product or a pooling in the branch.

    Attributes:
        add: the node of the sum.
        total: the sum.
        skip: the value that both operands start from: the other operand before any moves and
            scales, or what a ``projected`` one is computed from.
        branch: the operand with the most in it.
        inside: the values that depend on ``skip`` and that ``branch`` is computed from.
        attends: whether there is an attention in the branch.
        projected: whether the other operand is a product or a pooling of ``skip``, which changes
            the width or the grid.
        is_block: whether it is of one block; a long skip around several blocks is not.
    """

    add: Node
    total: Value
    skip: Value
    branch: Value
    inside: frozenset[Value]
    attends: bool
    projected: bool
    is_block: bool


def residuals(graph: Graph) -> list[Residual]:
    """The residual connections of a graph, in the order of execution."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    connections: list[Residual] = []
    sums: dict[Value, Residual] = {}
    for node in graph.nodes:
        if (summed := _summed(node)) is None:
            continue
        first, second, total = summed
        if any(v.shape is None or v.shape != node.output.shape for v in (first, second)):
            continue
        for skip, branch in ((first, second), (second, first)):
            residual = _residual(node, total, skip, branch, position, sums)
            if residual is not None:
                connections.append(residual)
                sums[total] = residual
                break
    return connections


def _summed(node: Node) -> tuple[Value, Value, Value] | None:
    """The two values that a node adds, and the sum, or its norm where the node yields no other;
    None for any other node."""
    row, operands = node.operator, node.dynamic_inputs()
    if node.op == "Add" and len(operands) == 2:
        return operands[0], operands[1], node.output
    if not row.norm_with_sum or len(operands) < 2:
        return None
    sums = [v for v in node.outputs[row.sum_output : row.sum_output + 1] if v.uses]
    return operands[0], operands[1], (*sums, node.output)[0]


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


def _residual(
    add: Node,
    total: Value,
    skip: Value,
    branch: Value,
    position: dict[Node, int],
    sums: Mapping[Value, Residual],
) -> Residual | None:
    """The residual connection of a sum whose operand ``branch`` starts from ``skip``, or from what
    that is computed from in a few steps. ``sums``: the residual connections before it by their
    sums, from one of which a branch may start as well (attention and MLP side by side)."""
    beside = [(sums[skip.origin].skip, False)] if skip.origin in sums else []
    for start, projected in (*_starts(skip), *beside):
        found = _inside(branch, start, position)
        if found is None:
            continue
        inside, nodes = found
        products = sum(_multiplies(n) or is_attention(n) for n in nodes)
        attends = any(is_attention(n) for n in nodes)
        is_block = len(inside & sums.keys()) < _STAGE
        if projected:  # two layers side by side are none, nor are stages that a pyramid adds up
            closes = (products > 1 or attends) and is_block
        else:
            closes = products > 0 or any(_pools(n) for n in nodes)
        if closes:
            return Residual(add, total, start, branch, inside, attends, projected, is_block)
    return None


def _starts(skip: Value) -> Iterator[tuple[Value, bool]]:
    """What the operand of a sum is computed from by moves, scales, poolings and at most one
    product, nearest first; whether by more than moves and scales."""
    value, products, pools = skip.origin, 0, False
    yield value, False
    while (node := value.producer) is not None:
        products += is_product(node)
        pools |= _pools(node)
        steps = is_product(node) or _pools(node) or node.operator.norm == "batch_norm"
        if products > 1 or not (steps or _scales(node)) or not node.dynamic_inputs():
            return
        value = node.dynamic_inputs()[0].origin
        yield value, bool(products) or pools


def _inside(
    branch: Value, skip: Value, position: dict[Node, int]
) -> tuple[frozenset[Value], set[Node]] | None:
    """The values and nodes from ``skip`` to ``branch``; None if that does not depend on it, or by
    too much to look at."""
    start = position[skip.producer] if skip.producer else -1
    before: set[Value] = set()
    nodes: set[Node] = set()
    norms: set[Value] = set()  # of ``skip``, by the operator that computes it
    closes = False
    pending = [branch]
    while pending:
        value = pending.pop()
        node = value.producer
        if value is skip or value.origin is skip:
            closes = True
            continue
        if node is skip.producer and node is not None and node.operator.norm_with_sum:
            norms.add(value)
            continue
        if value in before or node is None or position[node] < start:
            continue
        if node.operator.reads_sizes_only:
            continue
        if len(before) > _BLOCK:
            return None
        before.add(value)
        nodes.add(node)
        pending.extend(node.dynamic_inputs())
    if not closes and not norms:
        return None
    inside, own = {skip, *norms}, set[Node]()
    for node in sorted(nodes, key=position.__getitem__):
        if any(v in inside or v.origin is skip for v in node.dynamic_inputs()):
            inside.update(v for v in node.outputs if v in before)
            own.add(node)
    return frozenset(inside - {skip}), own


def _pools(node: Node) -> bool:
    """Whether it makes a smaller grid of tokens of theirs, window by window."""
    return node.operator.pool.startswith("local") or node.operator.pool == "maximum"


def _scales(node: Node) -> bool:
    """A product or sum with a constant, or an amount of padding."""
    return (node.operator.commutes and len(node.dynamic_inputs()) == 1) or (
        node.operator.move == "pad"
    )


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
        is_its = y in residual.inside or x.origin is residual.total
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
