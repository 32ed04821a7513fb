"""Weights that a pass is changing: maps collected per weight, written to the graph once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Graph, Node
from normswap.graph.linear import (
    ADDER,
    Convolution,
    Linear,
    convolution_at,
    linear_at,
    put_constant,
    stored_dtype,
)
from normswap.passes.algebra.channel_map import Affine, ChannelMap, product, times
from normswap.passes.algebra.rounding import check_held, check_precision, rounded, vanishes

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

    def each(self, edit: Callable[[Array], Array]) -> Absorbed:
        sides = (self.reads, self.writes)
        return Absorbed(*(s and Affine(edit(s.linear), edit(s.shift)) for s in sides))


class WeightEdits:
    """Collects per-channel maps for linear layers, convolutions and other constants.

    However many maps a weight takes, it is computed in float64 from what the graph holds, and
    rounded once. A map that its dtype cannot hold is refused before anything is edited.
    ``held_in``: another dtype, to which the model is going to be converted. Then every map has to
    be one that loses no bit of the graph's own dtype, and that one has to hold the result as well
    as it held the numbers before.
    """

    def __init__(self, graph: Graph, held_in: np.dtype[Any] | None = None) -> None:
        self.graph, self.held_in = graph, held_in
        self._weights: dict[Node, Weight | None] = {}
        self._absorbed: dict[Weight, Absorbed] = {}
        self._weight_arrays: dict[Weight, tuple[Array, Array | None]] = {}
        self._variables: dict[Weight, Variables] = {}
        self._constants: dict[tuple[Node, int], list[ChannelMap]] = {}
        self._constant_arrays: dict[tuple[Node, int], Array] = {}

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

    def absorbing(
        self, weight: Weight, reads: Affine | None, writes: Affine | None, seen: Variables
    ) -> Callable[[], None]:
        """The edit by which ``weight`` undoes or applies a map on the side of its input or of its
        output; it takes effect when it is called.

        ``seen``: all changes of variables, this one among them. Raises Refusal where the weight's
        dtype cannot hold the result.
        """
        absorbed = self.absorbed(weight).and_then(reads, writes)
        arrays = _rounded(weight, absorbed, self.held_in)

        def absorb() -> None:
            self._absorbed[weight], self._variables[weight] = absorbed, seen
            self._weight_arrays[weight] = arrays

        return absorb

    def absorbed(self, weight: Weight) -> Absorbed:
        """All that ``weight`` has taken so far."""
        return self._absorbed.get(weight, Absorbed())

    def variables(self, weight: Weight) -> Variables:
        """The changes of variables that ``weight`` has seen so far."""
        return self._variables.get(weight, Variables())

    def current(self, linear: Linear) -> Affine:
        """What a Linear computes with all that it has absorbed so far."""
        return Affine(*_changed(linear, self.absorbed(linear)))

    def changing_constant(self, node: Node, index: int, change: ChannelMap) -> Callable[[], None]:
        """The edit that applies ``change`` to the constant that ``node`` reads as its input
        ``index``; it takes effect when it is called.

        Raises Refusal where the constant's dtype cannot hold the result.
        """
        changes = [*self._constants.get((node, index), []), change]
        old, name = self._original(node, index), f"'{node.data_input(index).name}'"
        array, dtype = _applied(changes, old), stored_dtype(node, index)
        assert dtype is not None  # of a constant that is part of a computed sum
        if vanishes(array, dtype):
            terms = _applied([c.each(np.abs, c.axis) for c in changes], np.abs(old))
            before = old.reshape((1,) * (array.ndim - old.ndim) + old.shape)
            varying = [a for a in range(array.ndim) if any(c.varies(a) for c in changes)]
            channels = [tuple(a for a in range(array.ndim) if a != kept) for kept in varying]
            check_precision(array, terms, before, dtype=dtype, channels=channels, name=name)
        check_held(array, old, dtype, self.held_in, name)
        array = rounded(array, dtype, name)

        def apply() -> None:
            self._constants[node, index], self._constant_arrays[node, index] = changes, array

        return apply

    def constant_shape(self, node: Node, index: int) -> tuple[int, ...] | None:
        """The shape of ``constant``, which it may have changed."""
        if (node, index) in self._constants:
            return self.constant(node, index).shape
        return node.data_input(index).shape

    def constant(self, node: Node, index: int) -> Array:
        """A node's constant input with all changes so far, in float64."""
        return _applied(self._constants.get((node, index), []), self._original(node, index))

    def write(self) -> None:
        """Writes every change into the graph; what left the graph in the meantime is forgotten."""
        alive = set(self.graph.nodes)
        for weight, arrays in self._weight_arrays.items():
            if (weight.node if isinstance(weight, Convolution) else weight.product) in alive:
                weight.put(*arrays)
        for (node, index), array in self._constant_arrays.items():
            if node in alive:
                put_constant(self.graph, node, index, array)

    def _original(self, node: Node, index: int) -> Array:
        array = self.graph.constant(node.data_input(index))
        assert array is not None
        return array.astype(np.float64)


def _applied(changes: Sequence[ChannelMap], array: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused
        for change in changes:
            array = change.apply(array)
    return array


def _rounded(
    weight: Weight, absorbed: Absorbed, held_in: np.dtype[Any] | None
) -> tuple[Array, Array | None]:
    """The weight and bias that are to be stored, the bias None where there is to be none. Raises
    Refusal where the dtype cannot hold them, or ``held_in`` could not."""
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused
            array, shift = _changed(weight, absorbed)
        stored, bias = weight.as_stored(array, shift)
        if weight.bias is None and not np.any(shift):
            bias = None
        dtype, bias_dtype = weight.dtypes
        if vanishes(stored, dtype):
            sizes = absorbed.each(np.abs)
            terms = weight.as_stored(_changed(weight, sizes, np.abs)[0], None)[0]
            before = weight.as_stored(weight.weight, None)[0]
            first, second = stored.shape[:2]
            shape = (weight.groups, first // weight.groups, second, -1)
            check_precision(
                *(a.reshape(shape) for a in (stored, np.abs(terms), before)),
                dtype=dtype,
                channels=[(2, 3), (1, 3)],
                name=f"'{weight.name}'",
            )
        array = rounded(stored, dtype, f"'{weight.name}'")
        of_bias = f"the bias of '{weight.name}'"
        if held_in is not None:
            before, old_bias = weight.as_stored(weight.weight, weight.bias)
            check_held(stored, before, dtype, held_in, f"'{weight.name}'")
            if bias is not None and old_bias is not None:
                check_held(bias, old_bias, bias_dtype, held_in, of_bias)
        return array, None if bias is None else rounded(bias, bias_dtype, of_bias)
    finally:
        _forget(weight)


def _changed(
    weight: Weight, absorbed: Absorbed, form: Callable[[Array], Array] = np.asanyarray
) -> tuple[Array, Array]:
    """The weight, in the form of ``weight.weight``, and the bias [out], both in float64; those that
    it has now enter in a ``form``."""
    bias = np.zeros(weight.sizes[0]) if weight.bias is None else form(weight.bias)
    if isinstance(weight, Convolution):
        return _changed_kernel(form(weight.weight), bias, absorbed)
    result = Affine(form(weight.weight), bias)
    if absorbed.reads is not None:
        result = result.after(absorbed.reads)
    if absorbed.writes is not None:
        result = absorbed.writes.after(result)
    return result.linear, result.shift


def _changed_kernel(kernel: Array, bias: Array, absorbed: Absorbed) -> tuple[Array, Array]:
    """``kernel``: [groups, out / groups, in / groups, *sizes]."""
    groups, outs, ins, *sizes = kernel.shape
    if absorbed.reads is not None:
        linear, shift = absorbed.reads.linear, absorbed.reads.shift
        taps = kernel.sum(axis=tuple(range(3, kernel.ndim)))
        bias = bias + (taps @ shift.reshape(groups, -1, 1)).reshape(-1)
        if linear.ndim == 1:
            kernel = kernel * linear.reshape(groups, 1, ins, *(1,) * len(sizes))
        else:  # of one group
            kernel = np.moveaxis(np.tensordot(kernel, linear, (2, 0)), -1, 2)
    if absorbed.writes is not None:
        linear, shift = absorbed.writes.linear, absorbed.writes.shift
        bias = times(linear, bias) + shift
        rows = kernel.reshape(groups * outs, -1)
        kernel = product(linear, rows).reshape(groups, -1, ins, *sizes)
    return kernel, bias


def _forget(weight: Weight) -> None:
    """Drops the float64 copies."""
    for name in ("weight", "bias"):
        weight.__dict__.pop(name, None)
