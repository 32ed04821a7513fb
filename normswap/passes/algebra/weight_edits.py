"""Weights that a pass is changing: maps collected per weight, written to the graph once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array, Graph, Node
from normswap.graph.linear import (
    ADDER,
    Convolution,
    Linear,
    convolution_at,
    linear_at,
    put_constant,
)
from normswap.passes.algebra.channel_map import Affine, ChannelMap, product, times

Weight = Linear | Convolution


@dataclass(frozen=True)
class Variables:
    """The changes of variables that a weight has seen: the ``condition`` of the full ones, and what
    the diagonal ones have multiplied each channel by on the side it reads and the one it writes."""

    condition: float = 1.0
    reads: Array | float = 1.0
    writes: Array | float = 1.0

    def after(self, first: Variables) -> Variables:
        return Variables(
            self.condition * first.condition, self.reads * first.reads, self.writes * first.writes
        )

    @staticmethod
    def of(reads: Affine | None, writes: Affine | None, condition: float) -> Variables:
        sides = [
            np.abs(side.linear) if side is not None and side.linear.ndim == 1 else 1.0
            for side in (reads, writes)
        ]
        return Variables(condition, *sides)


@dataclass(frozen=True)
class Absorbed:
    """What a weight has taken: ``reads`` gives what it is to see from what comes in now, ``writes``
    what it is to give out now from what it gave."""

    reads: Affine | None = None
    writes: Affine | None = None

    def and_then(self, reads: Affine | None, writes: Affine | None) -> Absorbed:
        if reads is not None and self.reads is not None:
            reads = self.reads.after(reads)
        if writes is not None and self.writes is not None:
            writes = writes.after(self.writes)
        return Absorbed(reads or self.reads, writes or self.writes)


class WeightEdits:
    """Collects per-channel maps for linear layers, convolutions and other constants.

    However many maps a weight takes, it is loaded at the end, computed in float64 and rounded once.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._weights: dict[Node, Weight | None] = {}
        self._absorbed: dict[Weight, Absorbed] = {}
        self._variables: dict[Weight, Variables] = {}
        self._constants: dict[tuple[Node, int], list[ChannelMap]] = {}

    def weight_at(self, node: Node) -> Weight | None:
        """The Linear or the Convolution at ``node``, as it was when first asked for."""
        if node not in self._weights:
            found = linear_at(self.graph, node)
            self._weights[node] = found or convolution_at(self.graph, node)
        return self._weights[node]

    def weight_of(self, node: Node) -> Weight | None:
        """The Linear or the Convolution that ``node`` belongs to, be it as the Add of its bias."""
        if node.op != ADDER:
            return self.weight_at(node)
        products = [v.producer for v in node.dynamic_inputs() if v.producer is not None]
        found = [self.weight_at(p) for p in products]
        return next((w for w in found if isinstance(w, Linear) and w.adder is node), None)

    def absorb(
        self, weight: Weight, reads: Affine | None, writes: Affine | None, seen: Variables
    ) -> None:
        """Lets ``weight`` undo or apply a map on its side of the input or of the output.

        ``seen``: all changes of variables, this one among them.
        """
        self._absorbed[weight] = self.absorbed(weight).and_then(reads, writes)
        self._variables[weight] = seen

    def absorbed(self, weight: Weight) -> Absorbed:
        """All that ``weight`` has taken so far."""
        return self._absorbed.get(weight, Absorbed())

    def variables(self, weight: Weight) -> Variables:
        """The changes of variables that ``weight`` has seen so far."""
        return self._variables.get(weight, Variables())

    def current(self, linear: Linear) -> Affine:
        """What a Linear computes with all that it has absorbed so far."""
        return _changed(linear, self.absorbed(linear))

    def change_constant(self, node: Node, index: int, change: ChannelMap) -> None:
        """Applies ``change`` to the constant that ``node`` reads as its input ``index``."""
        self._constants.setdefault((node, index), []).append(change)

    def constant_shape(self, node: Node, index: int) -> tuple[int, ...] | None:
        """The shape of ``constant``, which it may have changed."""
        if (node, index) in self._constants:
            return self.constant(node, index).shape
        return node.data_input(index).shape

    def constant(self, node: Node, index: int) -> Array:
        """A node's constant input with all changes so far, in float64."""
        array = self.graph.constant(node.data_input(index))
        assert array is not None
        array = array.astype(np.float64)
        for change in self._constants.get((node, index), []):
            array = change.apply(array)
        return array

    def write(self) -> None:
        """Writes every change into the graph; what left the graph in the meantime is forgotten."""
        alive = set(self.graph.nodes)
        for weight, absorbed in self._absorbed.items():
            if isinstance(weight, Convolution):
                if weight.node in alive:
                    weight.write(*_changed_kernel(weight, absorbed))
            elif weight.product in alive:
                changed = _changed(weight, absorbed)
                keeps_none = weight.bias is None and not np.any(changed.shift)
                weight.write(changed.linear, None if keeps_none else changed.shift)
            _forget(weight)
        for node, index in self._constants:
            if node in alive:
                put_constant(self.graph, node, index, self.constant(node, index))


def _changed(linear: Linear, absorbed: Absorbed) -> Affine:
    bias = np.zeros(linear.sizes[0]) if linear.bias is None else linear.bias
    result = Affine(linear.weight, bias)
    if absorbed.reads is not None:
        result = result.after(absorbed.reads)
    return result if absorbed.writes is None else absorbed.writes.after(result)


def _changed_kernel(conv: Convolution, absorbed: Absorbed) -> tuple[Array, Array | None]:
    kernel, (out, _) = conv.kernel, conv.sizes
    bias = np.zeros(out) if conv.bias is None else conv.bias
    if absorbed.reads is not None:
        linear, shift = absorbed.reads.linear, absorbed.reads.shift
        grouped = kernel.reshape(conv.groups, out // conv.groups, *kernel.shape[1:])
        taps = grouped.sum(axis=tuple(range(3, grouped.ndim)))  # [groups, out, in] per group
        bias = bias + (taps @ shift.reshape(conv.groups, -1, 1)).reshape(-1)
        if linear.ndim == 1:
            spread = linear.reshape(conv.groups, 1, -1, *(1,) * (kernel.ndim - 2))
            kernel = (grouped * spread).reshape(kernel.shape)
        else:
            kernel = np.moveaxis(np.tensordot(kernel, linear, (1, 0)), -1, 1)
    if absorbed.writes is not None:
        linear, shift = absorbed.writes.linear, absorbed.writes.shift
        bias = times(linear, bias) + shift
        kernel = product(linear, kernel.reshape(out, -1)).reshape(kernel.shape)
    return kernel, None if conv.bias is None and not np.any(bias) else bias


def _forget(weight: Weight) -> None:
    """Drops the float64 copies."""
    for name in ("weight", "kernel", "bias"):
        weight.__dict__.pop(name, None)
