"""Where a search for a norm starts: roots over a statistic, and operators that normalise."""

from __future__ import annotations

from normswap.graph.graph import Graph, Node, Value

_REACH = 24  # operators between a root and its statistic, at most


def is_root(graph: Graph, node: Node) -> bool:
    """Whether ``node`` takes a root, by whatever operator, of something that depends on an input.

    A logarithm counts, since exp(-log(x) / 2) is one.
    """
    takes_root = bool(node.operator.root)
    if node.op == "Pow":
        exponent = graph.scalar(node.input(1))
        takes_root = exponent is not None and (exponent < 0 or exponent != int(exponent))
    return takes_root and bool(node.inputs) and not node.data_input().is_constant


def reduces(node: Node) -> bool:
    """Whether ``node`` computes fewer numbers than it reads, from all of them."""
    operator = node.operator
    if operator.statistic or operator.product == "einsum":
        return True
    return bool(operator.product) and shrinks(node)


def shrinks(node: Node) -> bool:
    """Whether a product leaves one number of each row: a mean as a matrix of 1/C."""
    dynamic = node.dynamic_inputs()
    if len(dynamic) != 1:
        return False
    before, after = dynamic[0].shape, node.output.shape
    if before is None or after is None or len(before) != len(after):
        return False
    return any(b > 1 == a for b, a in zip(before, after, strict=True))


def over_statistic(node: Node) -> bool:
    """Whether a reduction lies on the way into ``node``, or it is one itself."""
    if reduces(node):
        return True
    pending: list[Value] = node.dynamic_inputs()
    for _ in range(_REACH):
        if not pending:
            return False
        producer = pending.pop(0).producer
        if producer is not None and not producer.operator.reads_sizes_only:
            if reduces(producer):
                return True
            pending.extend(producer.dynamic_inputs())
    return False


def is_lowering(graph: Graph, node: Node) -> bool:
    """Whether a norm operator may be part of another norm: rows reshaped into its channels, a
    training-mode BatchNorm, or one without weight and bias of its own that others follow.
    """
    norm = node.operator.norm
    if norm == "batch_norm":
        return bool(node.attributes.get("training_mode"))
    if not norm or node.data_input().is_constant:
        return False
    readers = node.output.readers
    affine = any(r.operator.commutes and len(r.dynamic_inputs()) == 1 for r in readers)
    if norm in ("instance_norm", "group_norm"):
        return affine or _is_reshaped(node)
    return affine and _is_all(graph, node.input(1), 1.0) and _is_all(graph, node.input(2), 0.0)


def _is_reshaped(node: Node) -> bool:
    value = node.data_input()
    while value.producer is not None and value.producer.operator.passes_through:
        if value.producer.op == "Reshape":
            return True
        value = value.producer.data_input()
    return False


def _is_all(graph: Graph, value: Value | None, number: float) -> bool:
    if value is None:
        return True
    array = graph.constant(value)
    return array is not None and bool((array == number).all())
