"""Weights that a pass is changing, in float64, written back to the graph once."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Array, Graph, Node
from normswap.graph.linear import Linear, linear_at, put_constant


class WeightEdits:
    """Collects changes to Linears and to other constants; ``write`` casts each of them once.

    However many maps are folded into one weight, it is rounded a single time.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._linears: dict[Node, Linear | None] = {}
        self._constants: dict[tuple[Node, int], Array] = {}
        self._changed: dict[Node, Linear] = {}

    def linear(self, product: Node) -> Linear | None:
        """The Linear at ``product`` with all changes so far, or None if there is none."""
        if product not in self._linears:
            self._linears[product] = linear_at(self.graph, product)
        return self._linears[product]

    def change_linear(self, linear: Linear, weight: Array, bias: Array | None) -> None:
        linear.weight, linear.bias = weight, bias
        self._changed[linear.product] = linear

    def constant(self, node: Node, index: int) -> Array | None:
        """A node's constant input with all changes so far, in float64."""
        if (node, index) not in self._constants:
            value = node.input(index)
            array = self.graph.constant(value) if value is not None else None
            return None if array is None else array.astype(np.float64)
        return self._constants[node, index]

    def change_constant(self, node: Node, index: int, array: Array) -> None:
        self._constants[node, index] = array

    def write(self) -> None:
        """Writes every change into the graph."""
        for linear in self._changed.values():
            linear.write(linear.weight, linear.bias)
        for (node, index), array in self._constants.items():
            put_constant(self.graph, node, index, array)
