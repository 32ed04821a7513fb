"""Runs a graph over the field, node by node.

Constants are converted where they are used and kept nowhere; values are freed behind their last
reader, so that a large model needs little more memory than its largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from normswap.field.exact import Exact
from normswap.field.node import At, Read, Uncovered
from normswap.field.operators import compute
from normswap.field.values import Field
from normswap.graph.graph import Array, Graph, Node, Value, is_floating

Constants = Mapping[Value, Exact]


@dataclass(frozen=True)
class Side:
    """A graph that is compared: its inputs and outputs in the order of the reference's, and what
    stands in place of constants that a pass has computed. ``refusal``: why there is nothing to
    compare."""

    graph: Graph
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    constants: Constants | None = None
    refusal: str = ""


@dataclass
class Evaluation:
    """The outputs of a graph over the field, or why there are none.

    ``uninterpreted``: the operators that were. ``refusal``: what could not be computed.
    """

    outputs: list[Read] = field(default_factory=list)
    uninterpreted: set[str] = field(default_factory=set)
    refusal: str = ""


class Walk:
    """``evaluate`` in parts, with the same arguments: ``until`` goes on, and ``result`` is complete
    at the end. ``compute`` computes one node."""

    def __init__(
        self,
        over: Field,
        side: Side,
        given: Sequence[Read],
        watch: Callable[[Value, Exact], None] | None = None,
        compute: Callable[[At], Sequence[Read]] = compute,
    ) -> None:
        self._over, self._graph, self._outputs = over, side.graph, side.outputs
        self._held, self._watch, self._compute = side.constants or {}, watch, compute
        self._known: dict[Value, Read] = dict(zip(side.inputs, given, strict=True))
        self.nodes = side.graph.ancestors(side.outputs, stop=self._known)
        self._next = 0
        self._last = {
            value: i for i, node in enumerate(self.nodes) for value in node.inputs if value
        }
        self.result = Evaluation()

    def until(self, end: Node | None = None) -> None:
        """Computes the nodes up to ``end``; all of them, and the outputs, without one."""
        while self._next < len(self.nodes) and not self.result.refusal:
            node = self.nodes[self._next]
            self._step(node)
            self._next += 1
            if node is end:
                return
        if end is None and not self.result.refusal:
            self.result.outputs = [self._load(value) for value in self._outputs]

    def _load(self, value: Value | None) -> Read:
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        if value in self._held:
            return self._held[value]
        return _constant(self._over, self._graph, value)

    def _step(self, node: Node) -> None:
        wanted = [i for i, value in enumerate(node.outputs) if value.uses or value in self._outputs]
        at = At(self._over, self._graph, node, [self._load(v) for v in node.inputs], wanted)
        try:
            found = self._compute(at)
        except Uncovered as uncovered:
            if not node.output.is_constant:
                self.result.refusal = str(uncovered)
                return
            found = []
        if node.output.is_constant and (at.uninterpreted or not found):
            found = [_constant(self._over, self._graph, value) for value in node.outputs]
        elif at.uninterpreted:
            self.result.uninterpreted.add(at.uninterpreted)
        for place in wanted:
            value, array = node.outputs[place], found[place]
            self._known[value] = array
            if self._watch is not None and isinstance(array, Exact):
                self._watch(value, array)
        for read in node.inputs:
            if read is not None and self._last[read] == self._next and read not in self._outputs:
                self._known.pop(read, None)


def evaluate(
    over: Field,
    side: Side,
    given: Sequence[Read],
    watch: Callable[[Value, Exact], None] | None = None,
) -> Evaluation:
    """Computes the outputs of ``side`` from what is ``given`` for its inputs.

    Sums, products, roots and moves of constants are computed over the field as those of any values;
    what else a graph computes from constants is a constant, as its runtime computes it. ``watch``
    is called with every value that nodes compute.
    """
    walk = Walk(over, side, given, watch)
    walk.until()
    return walk.result


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
