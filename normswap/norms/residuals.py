"""The residual connections of a graph: ``x + f(x)`` with a product somewhere in f."""

from __future__ import annotations

from dataclasses import dataclass

from normswap.graph.graph import Graph, Node, Value

_REACH = 1000  # operators in a block, at most


@dataclass(frozen=True, eq=False)
class Residual:
    """``skip + branch``; ``skip`` is the origin of its operand.

    ``inside``: the values that the branch is computed from, the skip's own excluded. ``attends``:
    whether an attention is among what computes them.
    """

    add: Node
    skip: Value
    branch: Value
    inside: frozenset[Value]
    attends: bool


def residuals(graph: Graph) -> list[Residual]:
    """All of them, in the order of execution."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        operands = node.dynamic_inputs()
        if node.op != "Add" or len(operands) != 2:
            continue
        if any(v.shape is None or v.shape != node.output.shape for v in operands):
            continue
        for skip, branch in (operands, operands[::-1]):
            residual = _residual(node, skip.origin, branch, position)
            if residual is not None:
                found.append(residual)
                break
    return found


def is_attention(node: Node) -> bool:
    """A fused attention, a softmax, or a product of two computed values."""
    if node.operator.attention:
        return True
    return node.operator.product in ("matrix", "einsum") and len(_computed(node)) > 1


def is_product(node: Node) -> bool:
    """A product with constants."""
    return _multiplies(node) and len(_computed(node)) == 1


def _multiplies(node: Node) -> bool:
    return bool(node.operator.product) or node.operator.attention == "fused"


def _computed(node: Node) -> set[Value]:
    """The inputs that are no constants, expanded to a dynamic size or not."""
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
        if len(inside) > _REACH:
            return None
        inside.add(value)
        nodes.add(node)
        pending.extend(node.dynamic_inputs())
    if not closes or not any(_multiplies(n) or is_attention(n) for n in nodes):
        return None
    return Residual(add, skip, branch, frozenset(inside), any(is_attention(n) for n in nodes))
