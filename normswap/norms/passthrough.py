"""Operators that move or copy values without computing with them."""

from __future__ import annotations

from normswap.graph.graph import Value

PASS_THROUGH = frozenset(
    {
        "Identity",
        "Cast",
        "Dropout",
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Slice",
    }
)
MOVES = PASS_THROUGH | {
    "AveragePool",
    "Gather",
    "GatherND",
    "GlobalAveragePool",
    "Pad",
    "ReduceMean",
    "ReduceSum",
    "Split",
    "Tile",
    "aten.roll.default",
}
"""Those, and operators that take, average, repeat or pad the elements of their first input."""


def root(value: Value) -> Value:
    """The value that ``value`` only moves or copies."""
    while value.producer is not None and value.producer.op in PASS_THROUGH:
        value = value.producer.data_input()
    return value
