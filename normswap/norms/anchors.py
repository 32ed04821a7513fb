"""Where a search for a norm starts: roots over a statistic, and operators that normalise."""

from __future__ import annotations

from normswap.graph.graph import Graph, Node, Value
from normswap.norms.passthrough import PASS_THROUGH

_REACH = 24  # operators between a root and its statistic, at most
_REDUCTIONS = frozenset(
    {
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "GlobalAveragePool",
        "AveragePool",
        "CumSum",
        "Einsum",
    }
)
_STATISTICS = ("aten.var", "aten.std", "aten.linalg_vector_norm", "aten.norm")
_L2 = ("ReduceL2", "LpNormalization", "MeanVarianceNormalization")
_ROOTS_OF_ATEN = ("aten.std", "aten.linalg_vector_norm", "aten.norm")
_NORMS = (
    "LayerNormalization",
    "RMSNormalization",
    "InstanceNormalization",
    "GroupNormalization",
)


def is_root(graph: Graph, node: Node) -> bool:
    """Whether ``node`` takes a root, by whatever operator, of something that depends on an input.

    A logarithm counts, since exp(-log(x) / 2) is one.
    """
    if node.op in ("Sqrt", "Rsqrt", "Log"):
        found = True
    elif node.op == "Pow":
        exponent = graph.scalar(node.input(1))
        found = exponent is not None and (exponent < 0 or exponent != int(exponent))
    else:
        found = node.op in _L2 or node.op.startswith(_ROOTS_OF_ATEN)
    return found and bool(node.inputs) and not node.data_input().is_constant


def reduces(node: Node) -> bool:
    """Whether ``node`` computes fewer numbers than it reads, from all of them."""
    if node.op in _REDUCTIONS or node.op.startswith(_STATISTICS) or node.op in _L2:
        return True
    return node.op in ("MatMul", "Linear", "Gemm", "Conv") and shrinks(node)


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
    if reduces(node) or node.op in _L2:
        return True
    pending: list[Value] = node.dynamic_inputs()
    for _ in range(_REACH):
        if not pending:
            return False
        producer = pending.pop(0).producer
        if producer is not None and producer.op != "Shape":
            if reduces(producer):
                return True
            pending.extend(producer.dynamic_inputs())
    return False


def is_lowering(graph: Graph, node: Node) -> bool:
    """Whether a norm operator may be part of another norm: rows reshaped into its channels, a
    training-mode BatchNorm, or one without weight and bias of its own that others follow.
    """
    if node.op == "BatchNormalization":
        return bool(node.attributes.get("training_mode"))
    if node.op not in _NORMS or node.data_input().is_constant:
        return False
    readers = node.output.readers
    affine = any(r.op in ("Mul", "Add") and len(r.dynamic_inputs()) == 1 for r in readers)
    if node.op in ("InstanceNormalization", "GroupNormalization"):
        return affine or _is_reshaped(node)
    return affine and _is_all(graph, node.input(1), 1.0) and _is_all(graph, node.input(2), 0.0)


def _is_reshaped(node: Node) -> bool:
    value = node.data_input()
    while value.producer is not None and value.producer.op in PASS_THROUGH:
        if value.producer.op == "Reshape":
            return True
        value = value.producer.data_input()
    return False


def _is_all(graph: Graph, value: Value | None, number: float) -> bool:
    if value is None:
        return True
    array = graph.constant(value)
    return array is not None and bool((array == number).all())
