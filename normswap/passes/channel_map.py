"""A per-channel affine map on a value, and where its channels go through operators that only move
or copy values. ``push_down.py`` and ``pull_up.py`` are the two directions of the fold algebra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from normswap.graph.graph import Array, Node, Value
from normswap.passes.base import Refusal

Action = Callable[[], None]


@dataclass(frozen=True)
class ChannelMap:
    """y = scale * x + shift along ``axis``; arrays [C] in float64."""

    scale: Array
    shift: Array
    axis: int

    @property
    def size(self) -> int:
        return len(self.scale)

    def along(self, axis: int) -> ChannelMap:
        return replace(self, axis=axis)

    def without_shift(self) -> ChannelMap:
        return replace(self, shift=np.zeros_like(self.shift))

    def apply(self, array: Array, rank: int) -> Array:
        """The map on a constant that broadcasts against a value of ``rank`` axes."""
        axis = self.axis - (rank - array.ndim)
        if axis < 0:  # the constant has no such axis: it gains it
            array = array.reshape((1,) * -axis + array.shape)
            axis = 0
        shape = [1] * array.ndim
        shape[axis] = self.size
        return array * self.scale.reshape(shape) + self.shift.reshape(shape)


def axis_after(node: Node, axis: int) -> int:
    """Where channel ``axis`` of a node's first input is in its output.

    Raises Refusal where the operator splits, merges or indexes the axis, or is none that only
    moves or copies values.
    """
    mover = _MOVES.get(node.op)
    if mover is None:
        raise Refusal(f"{_called(node)} reads it")
    moved = mover(node, axis)
    if moved is None:
        raise Refusal(f"{_called(node)} does not keep its channels whole")
    return moved


def axis_before(node: Node, axis: int) -> int:
    """The channel axis of the first input that becomes ``axis`` of the output; see axis_after."""
    if node.op not in _MOVES:
        raise Refusal(f"{_called(node)} computes it")
    rank = node.data_input().rank
    for candidate in range(rank or 0):
        if _size(node.data_input(), candidate) in (_size(node.output, axis), 1):
            moved = _MOVES[node.op](node, candidate)
            if moved == axis:
                return candidate
    raise Refusal(f"{_called(node)} does not keep its channels whole")


def _called(node: Node) -> str:
    return f"{node.op} '{node.output.name}'"


def _size(value: Value, axis: int) -> int | None:
    return None if value.shape is None or axis >= len(value.shape) else value.shape[axis]


def _same(node: Node, axis: int) -> int | None:
    return axis


def _transpose(node: Node, axis: int) -> int | None:
    perm = node.attributes.get("perm")
    return None if perm is None else tuple(perm).index(axis)


def _reshape(node: Node, axis: int) -> int | None:
    """Row-major order: the channel axis is whole where as much lies before it and behind it."""
    before, after = node.data_input().shape, node.output.shape
    if before is None or after is None or 0 in before:
        return None
    lead, size, trail = math.prod(before[:axis]), before[axis], math.prod(before[axis + 1 :])
    for index, other in enumerate(after):
        if other == size and (math.prod(after[:index]), math.prod(after[index + 1 :])) == (
            lead,
            trail,
        ):
            return index
    return None


def _keeping(*names: str) -> Callable[[Node, int], int | None]:
    """For operators that work along axes of their own: channels must lie on another one."""

    def move(node: Node, axis: int) -> int | None:
        for name in names:
            worked = node.attributes.get(name)
            if worked is None or axis in (worked if isinstance(worked, tuple) else (worked,)):
                return None
        dropped = node.attributes["axes"] if not node.attributes.get("keepdims", 1) else ()
        return axis - sum(a < axis for a in dropped)

    return move


def _gather(node: Node, axis: int) -> int | None:
    along = node.attributes["axis"]
    before, after = node.data_input().rank, node.output.rank
    if axis == along or before is None or after is None:
        return None
    return axis if axis < along else axis + after - before


def _gather_nd(node: Node, axis: int) -> int | None:
    depth = node.attributes.get("depth")
    before, after = node.data_input().rank, node.output.rank
    if depth is None or axis < depth or before is None or after is None:
        return None
    return axis + after - before


def _expand(node: Node, axis: int) -> int | None:
    before, after = node.data_input().rank, node.output.rank
    return None if before is None or after is None else axis + after - before


def _split(node: Node, axis: int) -> int | None:
    along = node.attributes["axis"]
    if axis == along:
        return None
    return axis if node.attributes["keepdims"] or axis < along else axis - 1


_MOVES: dict[str, Callable[[Node, int], int | None]] = {
    "Identity": _same,
    "Cast": _same,
    "Dropout": _same,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Slice": _keeping("axes"),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Expand": _expand,
    "Split": _split,
    "ReduceMean": _keeping("axes"),
}
