"""Runs a graph over the field, node by node.

Constants are converted where they are used and kept nowhere; values are freed behind their last
reader, so that a large model needs little more memory than its largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from normswap.field.node import At, Read, Uncovered
from normswap.field.operators import compute
from normswap.field.values import Exact, Field
from normswap.graph.graph import Array, Graph, Value, is_floating

Constants = Mapping[Value, Exact]


@dataclass
class Evaluation:
    """The outputs of a graph over the field, or why there are none.

    ``uninterpreted``: the operators that were. ``refusal``: what could not be computed.
    """

    outputs: list[Read] = field(default_factory=list)
    uninterpreted: set[str] = field(default_factory=set)
    refusal: str = ""


def evaluate(
    over: Field,
    graph: Graph,
    feeds: Mapping[Value, Read],
    outputs: Sequence[Value],
    constants: Constants | None = None,
    watch: Callable[[Value, Exact], None] | None = None,
) -> Evaluation:
    """Computes ``outputs`` from ``feeds``, which has every input that they depend on.

    Sums, products, roots and moves of constants are computed over the field as those of any values;
    what else a graph computes from constants is a constant, as its runtime computes it.
    ``constants``: what constants of the graph are, in place of what it holds for them. ``watch`` is
    called with every value that nodes compute.
    """
    result, held = Evaluation(), constants or {}
    nodes = graph.ancestors(outputs, stop=feeds)
    last = {value: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    known: dict[Value, Read] = dict(feeds)

    def load(value: Value | None) -> Read:
        if value is None:
            return None
        if value in known:
            return known[value]
        return held[value] if value in held else _constant(over, graph, value)

    kept = set(outputs)
    for index, node in enumerate(nodes):
        wanted = [i for i, value in enumerate(node.outputs) if value.uses or value in kept]
        at = At(over, graph, node, [load(value) for value in node.inputs], wanted)
        try:
            found: Sequence[Read] = compute(at)
        except Uncovered as uncovered:
            if not node.output.is_constant:
                result.refusal = str(uncovered)
                return result
            found = []
        if node.output.is_constant and (at.uninterpreted or not found):
            found = [_constant(over, graph, value) for value in node.outputs]
        elif at.uninterpreted:
            result.uninterpreted.add(at.uninterpreted)
        for place in wanted:
            value, array = node.outputs[place], found[place]
            known[value] = array
            if watch is not None and isinstance(array, Exact):
                watch(value, array)
        for value in {v for v in node.inputs if v is not None and last[v] == index} - kept:
            known.pop(value, None)
    result.outputs = [load(value) for value in outputs]
    return result


def _constant(over: Field, graph: Graph, value: Value) -> Read:
    """A constant as the graph has it; None for a body that a node may run."""
    if not value.is_constant:
        return None
    array = np.asarray(graph.plain_constant(value))
    return over.constant(array) if is_floating(array.dtype) else array


def equal(one: Read, other: Read) -> bool:
    """Whether two values are the same modulo every prime; of whole numbers, whether they are."""
    if isinstance(one, Exact) and isinstance(other, Exact):
        return one.shape == other.shape and all(
            np.array_equal(one.residue(j), other.residue(j)) for j in range(one.count)
        )
    if isinstance(one, Exact) or isinstance(other, Exact):
        return False
    return np.array_equal(np.asarray(one), np.asarray(other))


def drawn(over: Field, arrays: Mapping[str, Array]) -> dict[str, Read]:
    """Symbols in place of floating inputs, with ``arrays`` as their shadows."""
    return {n: over.symbol(a) if is_floating(a.dtype) else a for n, a in arrays.items()}
