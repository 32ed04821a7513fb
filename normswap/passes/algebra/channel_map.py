"""Per-channel affine maps: ``ChannelMap`` on a value of the graph, ``Affine`` on one axis of a
weight.

A ``ChannelMap`` is kept as arrays that broadcast against the value, so that one that differs from
head to head, or concerns a part of the channels only, is no special case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from normswap.graph.graph import Array
from normswap.passes.base import Refusal

_SAME, _ROUNDING = 1e-9, 1e-14


@dataclass(frozen=True)
class Affine:
    """y = A x + t: ``linear`` is [C] for a diagonal A and [C, C] for a full one, ``shift`` [C]."""

    linear: Array
    shift: Array

    def after(self, first: Affine) -> Affine:
        """x -> self(first(x))"""
        shift = times(self.linear, first.shift) + self.shift
        return Affine(product(self.linear, first.linear), shift)


def product(left: Array, right: Array) -> Array:
    """The product of two matrices, each of which may be the [C] of a diagonal one."""
    if left.ndim == 1:
        return left * right if right.ndim == 1 else left[:, None] * right
    return left * right if right.ndim == 1 else left @ right


def times(matrix: Array, vector: Array) -> Array:
    """A matrix, or the [C] of a diagonal one, times a vector."""
    return matrix * vector if matrix.ndim == 1 else matrix @ vector


@dataclass(frozen=True)
class ChannelMap:
    """y = A x + t on a value of r axes.

    ``shift``: r axes, 1 where it does not vary. ``linear``: the same for a diagonal A (``axis`` is
    None); for a full one [..., C, ..., C], its rows along ``axis``, its columns behind all others.
    ``inverse``: of ``linear`` in the same form, where the map may be undone.
    """

    linear: Array
    shift: Array
    inverse: Array | None = None
    axis: int | None = None

    @staticmethod
    def along(linear: Array, shift: Array, axis: int, rank: int) -> ChannelMap:
        """The map of ``linear`` ([C] or [C, C]) and ``shift`` [C] along ``axis``."""
        shape = [1] * rank
        shape[axis] = len(shift)
        full = linear.ndim == 2
        rows = linear.reshape(*shape, *linear.shape[1:])
        return ChannelMap(rows, shift.reshape(shape), axis=axis if full else None)

    @property
    def rank(self) -> int:
        return self.shift.ndim

    @property
    def shifts(self) -> bool:
        return bool(np.any(self.shift))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes along which the map varies, 1 for all others."""
        return np.broadcast_shapes(self.linear.shape[: self.rank], self.shift.shape)

    def with_shift(self, shift: Array) -> ChannelMap:
        return replace(self, shift=shift)

    def without_shift(self) -> ChannelMap:
        return self.with_shift(np.zeros((1,) * self.rank))

    def invertible(self) -> ChannelMap:
        """The map with its inverse. Raises Refusal where it has none that is accurate."""
        if self.axis is None:
            if not np.all(self.linear):
                raise Refusal("a channel's scale is 0, which nothing can undo")
            return replace(self, inverse=1 / self.linear)
        matrix = np.moveaxis(self.linear, self.axis, -2)
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError:
            raise Refusal("its matrix is singular, which nothing can undo") from None
        return replace(self, inverse=np.moveaxis(inverse, -2, self.axis))

    @property
    def condition(self) -> float:
        """Of a full matrix whose rows are scaled to one length; 1 for a diagonal one.

        How much larger rounding errors become where a stream changes its variables: scaling single
        channels does not make any.
        """
        if self.axis is None:
            return 1.0
        matrix = np.moveaxis(self.linear, self.axis, -2)
        lengths = np.linalg.norm(matrix, axis=-1, keepdims=True)
        return float(np.max(np.linalg.cond(matrix / lengths)))

    def inverted(self) -> ChannelMap:
        """x = A^-1 y - A^-1 t. Raises Refusal for a map that came without its inverse."""
        if self.inverse is None:
            raise Refusal("the inverse of the map would be needed")
        back = ChannelMap(self.inverse, self.shift, self.linear, self.axis)
        return back.with_shift(-back.times(self.shift))

    def times(self, array: Array) -> Array:
        """A times an array of the value's axes."""
        if self.axis is None:
            return self.linear * array
        matrix = np.moveaxis(self.linear, self.axis, -2)
        if matrix.size == matrix.shape[-1] ** 2 and array.shape[self.axis] > 1:
            rows = np.moveaxis(array, self.axis, -1)  # one matrix for all, a table of embeddings'
            return np.moveaxis(rows @ matrix.reshape(matrix.shape[-2:]).T, -1, self.axis)
        column = np.moveaxis(array, self.axis, -1)[..., None]
        if column.shape[-2] == 1:
            column = np.broadcast_to(column, (*column.shape[:-2], matrix.shape[-1], 1))
        return np.moveaxis((matrix @ column)[..., 0], -1, self.axis)

    def apply(self, array: Array) -> Array:
        """The map on a constant that broadcasts against the value."""
        return self.times(array.reshape((1,) * (self.rank - array.ndim) + array.shape)) + self.shift

    def neutral(self) -> ChannelMap:
        """y = x, in the form of this map."""
        shift = np.zeros((1,) * self.rank)
        if self.axis is None:
            one = np.ones((1,) * self.rank)
        else:
            size = self.linear.shape[-1]
            shape = [1] * self.rank
            shape[self.axis] = size
            one = np.eye(size).reshape(*shape, size)
        return ChannelMap(one, shift, None if self.inverse is None else one, self.axis)

    def each(self, edit: Callable[[Array], Array], axis: int | None) -> ChannelMap:
        """The map whose arrays are edited, its channels on ``axis`` if it is a full one."""
        inverse = None if self.inverse is None else edit(self.inverse)
        return ChannelMap(edit(self.linear), edit(self.shift), inverse, axis)

    def varies(self, axis: int) -> bool:
        return self.shape[axis] > 1 or axis == self.axis

    def compact(self) -> ChannelMap:
        """The same map, without axes along which nothing varies."""
        return self.each(lambda a: _compact(a, self.rank, self.axis), self.axis)

    def has_linear_of(self, other: ChannelMap) -> bool:
        """Whether both have the same A."""
        known = self.rank == other.rank and self.axis == other.axis
        return known and _alike(self.linear, other.linear)

    def is_same(self, other: ChannelMap) -> bool:
        return self.has_linear_of(other) and _alike(self.shift, other.shift)

    def is_neutral(self) -> bool:
        return self.is_same(self.neutral())

    def on(self, axis: int, size: int) -> Affine | None:
        """What it does along ``axis`` of ``size`` channels, None if it varies along another one."""
        shape = self.shape
        if any(s > 1 for a, s in enumerate(shape) if a != axis) or shape[axis] not in (1, size):
            return None
        shift = np.broadcast_to(self.shift.reshape(-1), (size,))
        if self.axis is None:
            return Affine(np.broadcast_to(self.linear.reshape(-1), (size,)), shift)
        return Affine(self.linear.reshape(size, size), shift) if axis == self.axis else None


def _compact(array: Array, rank: int, kept: int | None) -> Array:
    for axis in range(rank):
        if array.shape[axis] > 1 and axis != kept:
            first = np.take(array, [0], axis)
            if np.array_equal(np.broadcast_to(first, array.shape), array):
                array = first
    return array


def _alike(first: Array, second: Array) -> bool:
    if first is second:
        return True
    try:
        largest = np.maximum(np.abs(first), np.abs(second))
    except ValueError:  # shapes that do not go together
        return False
    floor = _ROUNDING * largest.max(initial=0)  # what is left of terms that cancel
    return bool(np.all(np.abs(first - second) <= _SAME * largest + floor))
