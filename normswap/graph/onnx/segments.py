"""Runs slices of a large ONNX graph in ONNX Runtime a segment at a time, with their weights fed.

A session copies its initializers, and holds two copies of them while it is opened. What it is fed
it reads in place, so weights that are mapped from a file stay there, and their pages are released
behind the segment that reads them. Any slice of a large graph runs so, however small: many of them
may be open at once, and together they read all the weights.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from normswap.graph.graph import Array, Runner
from normswap.graph.onnx.nodes import captured_values
from normswap.graph.operators import operator

SEGMENT = 1 << 28
"""Bytes of memory that the weights of a segment take while it runs; a graph whose weights all take
less is no large one."""
_LARGE = 1 << 20  # bytes of a weight that is fed
_FED = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
"""What ONNX Runtime takes from numpy; it has no product of bfloat16 on the CPU either."""
_CAST = 3  # times the bytes of float16, which is cast to float32 for a product on the CPU

Input = tuple[ir.Value, np.dtype[Any] | None, tuple[int, ...] | None]
"""A value that a slice is given, with its dtype and its shape (None: unknown, or any)."""
Opened = Callable[[ir.Model, Sequence[Input], Sequence[ir.Value]], Runner]


def segmented(
    model: ir.Model,
    inputs: Sequence[Input],
    outputs: Sequence[ir.Value],
    parts: tuple[Sequence[ir.Node], Sequence[ir.Value]],
    opened: Opened,
) -> Runner | None:
    """A function from arrays for ``inputs`` to arrays of ``outputs``; None for a slice that reads
    no large weight, is of a graph that is not large, or hands on sequences.

    ``parts``: the nodes and constants of the slice. ``opened``: gives a runner of a smaller slice.
    """
    nodes, constants = parts
    weights = _fed(nodes, constants)
    if not weights or sum(map(_taken, model.graph.initializers.values())) <= SEGMENT:
        return None
    given = {entry[0]: entry for entry in inputs}
    found = _segments(nodes, weights, [*given], outputs)
    if any(not _is_array(value) for segment in found for value in segment.writes):
        return None

    def run(arrays: Sequence[Array]) -> list[Array]:
        known = dict(zip(given, arrays, strict=True))
        for segment in found:
            segment.run(model, known, given, opened)
        return [known[value] if value in known else _held(value) for value in outputs]

    return run


def release(tensor: ir.TensorProtocol | None) -> None:
    """Releases the pages of a tensor that lies in a mapped file, to be read again when needed."""
    release_pages = getattr(tensor, "release_pages", None)
    if release_pages is not None:
        release_pages()


@dataclass
class _Segment:
    """Nodes that run together: what they read of the values of others, which ``weights``, and what
    others read of theirs. ``last``: the values that nothing reads behind it."""

    nodes: list[ir.Node]
    weights: list[ir.Value]
    reads: list[ir.Value] = field(default_factory=list)
    writes: list[ir.Value] = field(default_factory=list)
    last: list[ir.Value] = field(default_factory=list)
    _run: Runner | None = None

    def run(
        self,
        model: ir.Model,
        known: dict[ir.Value, Array],
        given: dict[ir.Value, Input],
        opened: Opened,
    ) -> None:
        """Adds what it computes to the ``known`` arrays, and takes out what is needed no more."""
        arrays = [*(known[v] for v in self.reads), *map(_held, self.weights)]
        if self._run is None:
            values = zip([*self.reads, *self.weights], arrays, strict=True)
            typed = [given.get(v, (v, a.dtype, _shape(v))) for v, a in values]
            self._run = opened(model, typed, self.writes)
        known.update(zip(self.writes, self._run(arrays), strict=True))
        for value in self.last:
            known.pop(value, None)
        del arrays
        for value in self.weights:
            release(value.const_value)
        _return_freed()


def _return_freed() -> None:
    """Gives freed memory back to the system: glibc keeps what lies between pieces in use, and it
    would grow with the weights that are rounded and cast."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _segments(
    nodes: Sequence[ir.Node],
    weights: Sequence[ir.Value],
    given: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
) -> list[_Segment]:
    fed, room = set(weights), 0
    found: list[_Segment] = []
    for node in nodes:  # in topological order
        own = [value for value in dict.fromkeys(_reads(node)) if value in fed]
        room -= sum(map(_taken, own))
        if room < 0 or not found:
            found.append(_Segment([], []))
            room = SEGMENT - sum(map(_taken, own))
        found[-1].nodes.append(node)
        found[-1].weights = list(dict.fromkeys([*found[-1].weights, *own]))
    handed_on = set(given) | {value for node in nodes for value in node.outputs}
    read = [dict.fromkeys(v for n in s.nodes for v in _reads(n) if v in handed_on) for s in found]
    needed = set(outputs)
    for segment, values in zip(reversed(found), reversed(read), strict=True):
        computed = dict.fromkeys(value for node in segment.nodes for value in node.outputs)
        segment.writes = [value for value in computed if value in needed]
        segment.reads = [value for value in values if value not in computed]
        segment.last = [value for value in segment.reads if value not in needed]
        needed.update(segment.reads)
    return found


def _fed(nodes: Sequence[ir.Node], constants: Sequence[ir.Value]) -> list[ir.Value]:
    """Those of ``constants`` that no node needs to have before it runs."""
    inside = set(nodes)
    return [
        value
        for value in constants
        if value.producer() is None
        and _size(value) >= _LARGE
        and value.const_value is not None
        and value.const_value.dtype in _FED
        and all(_may_be_fed(node, index) for node, index in value.uses() if node in inside)
    ]


def _may_be_fed(node: ir.Node, index: int) -> bool:
    row = operator(node.op_type)
    return row.product in ("matrix", "convolution") or (row.move == "gather" and index == 0)


def _reads(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *captured_values(node)) if value is not None]


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _taken(value: ir.Value) -> int:
    """The bytes that a weight takes while a segment reads it."""
    tensor = value.const_value
    is_cast = tensor is not None and tensor.dtype == ir.DataType.FLOAT16
    return _size(value) * (_CAST if is_cast else 1)


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.const_value is None else tuple(value.const_value.shape.numpy())


def _held(value: ir.Value) -> Array:
    tensor = value.const_value
    assert tensor is not None  # else a segment would have computed it
    return np.ascontiguousarray(tensor.numpy())


def _is_array(value: ir.Value) -> bool:
    return not isinstance(value.type, ir.SequenceType | ir.OptionalType)
