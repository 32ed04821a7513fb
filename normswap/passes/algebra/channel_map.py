"""Per-channel affine maps, and what happens to them where the axes of a value change.

A ``ChannelMap`` belongs to a value of the graph, an ``Affine`` to one axis of a weight. A
``ChannelMap`` is kept as arrays that broadcast against the value, so that a map that differs from
head to head, or concerns only some of the channels, is no special case. The functions behind the
class move, add, remove, split and merge axes, and take or put together parts of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Node, alike
from normswap.passes.base import Refusal, called

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
    def is_finite(self) -> bool:
        return bool(np.all(np.isfinite(self.linear)) and np.all(np.isfinite(self.shift)))

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
        with np.errstate(all="ignore"):
            scaled = matrix / np.linalg.norm(matrix, axis=-1, keepdims=True)
        if not np.all(np.isfinite(scaled)):  # a row of zeros, or what a file may hold
            return float("inf")
        return float(np.max(np.linalg.cond(scaled)))

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


# -- axes ------------------------------------------------------------------------------------------


def transposed(change: ChannelMap, perm: Sequence[int]) -> ChannelMap:
    axis = None if change.axis is None else list(perm).index(change.axis)
    return change.each(lambda a: a.transpose(*perm, *range(len(perm), a.ndim)), axis)


def with_axis(change: ChannelMap, at: int) -> ChannelMap:
    """A new axis ``at`` along which the map does not vary."""
    moved = change.axis if change.axis is None or change.axis < at else change.axis + 1
    return change.each(lambda a: np.expand_dims(a, at), moved)


def without_axis(change: ChannelMap, at: int, node: Node) -> ChannelMap:
    if change.varies(at):
        raise split_up(node)
    moved = change.axis if change.axis is None or change.axis < at else change.axis - 1
    return change.each(lambda a: np.squeeze(a, at), moved)


def section(change: ChannelMap, axis: int, positions: Array | None, node: Node) -> ChannelMap:
    """The map of what lies at ``positions`` along ``axis``."""
    if not change.varies(axis):
        return change
    if positions is None:
        raise split_up(node)
    if axis != change.axis:
        return change.each(
            lambda a: a if a.shape[axis] == 1 else np.take(a, positions, axis), change.axis
        )
    size = change.linear.shape[-1]
    others = np.setdiff1d(np.arange(size), positions)
    if np.any(np.take(np.take(change.linear, positions, axis), others, -1)):
        raise split_up(node)

    def take(array: Array) -> Array:
        if array.ndim > change.rank:
            array = np.take(array, positions, -1)
        return array if array.shape[axis] == 1 else np.take(array, positions, axis)

    return change.each(take, axis)


def embedded(change: ChannelMap, axis: int, positions: Array | None, size: int) -> ChannelMap:
    """A map of ``size`` positions along ``axis``: ``change`` at some, none at the others."""
    if positions is None:
        raise Refusal("which part of a value is read is not known")
    neutral, rank = change.neutral(), change.rank

    def embed(array: Array, rest: Array) -> Array:
        tail = array.shape[rank:]
        shape = list(np.broadcast_shapes(array.shape[:rank], rest.shape[:rank]))
        shape[axis] = size
        if tail and axis == change.axis:
            whole = np.broadcast_to(_eye(size, axis, rank), (*shape, size))
            inner = alike(np.moveaxis(whole, axis, -2).copy(), array)
            inner[..., positions[:, None], positions] = np.moveaxis(array, axis, -2)
            return np.moveaxis(inner, -2, axis)
        result = alike(np.broadcast_to(rest, (*shape, *tail)).copy(), array)
        at: tuple[Any, ...] = (*(slice(None) for _ in range(axis)), positions)
        result[at] = array
        return result

    rest = neutral.linear if change.axis != axis else np.ones((1,) * rank)
    inverse = None if change.inverse is None else embed(change.inverse, rest)
    return ChannelMap(
        embed(change.linear, rest), embed(change.shift, neutral.shift), inverse, change.axis
    )


def joined(
    parts: Sequence[tuple[ChannelMap, Array]], axis: int, size: int, node: Node
) -> ChannelMap:
    """The map of several values put together along ``axis``; what is at no given place stays."""
    first, place = parts[0]
    if not first.varies(axis):
        return first
    total = embedded(first, axis, place, size)
    for change, place in parts[1:]:
        if change.axis != first.axis or (change.inverse is None) != (first.inverse is None):
            raise split_up(node)
        more, rest = embedded(change, axis, place, size), total.neutral()
        inverse = total.inverse  # what lies at other places is neutral
        if inverse is not None and rest.inverse is not None and more.inverse is not None:
            inverse = inverse + more.inverse - rest.inverse
        linear = total.linear + more.linear - rest.linear
        total = ChannelMap(linear, total.shift + more.shift, inverse, total.axis)
    return total


def regrouped(
    change: ChannelMap, before: Sequence[int], after: Sequence[int], node: Node
) -> ChannelMap:
    """Row-major order: axes that split, merge or stay."""
    if 0 in before or math.prod(before) != math.prod(after):
        raise split_up(node)
    groups = _groups(before, after)

    def edit(array: Array) -> Array:
        sizes, result = list(array.shape[: len(before)]), [1] * len(after)
        tail = array.shape[len(before) :]
        for old, new in groups:
            if any(sizes[a] > 1 for a in old):
                for a in old:
                    sizes[a] = before[a]
                for a in new:
                    result[a] = after[a]
        return np.broadcast_to(array, (*sizes, *tail)).reshape(*result, *tail)

    if change.axis is None:
        return change.each(edit, None)
    old, new = next(((o, n) for o, n in groups if change.axis in o), ([], []))
    if not new or any(change.varies(a) for a in range(len(before)) if a not in old):
        raise split_up(node)
    inner, sizes = old.index(change.axis), [before[a] for a in old]
    split = [after[a] for a in new]

    def merged(matrix: Array) -> Array:
        shape = [matrix.shape[a] for a in old]
        return _block_diagonal(matrix.reshape(*shape, matrix.shape[-1]), sizes, inner)

    whole = merged(change.linear)
    outer = next((i for i in reversed(range(len(new))) if _is_block_wise(whole, split, i)), None)
    if outer is None:
        raise split_up(node)

    def placed(matrix: Array) -> Array:
        blocks, result = _blocks(matrix, split, outer), [1] * len(after)
        for axis, size in zip(new, blocks.shape, strict=False):
            result[axis] = size
        return blocks.reshape(*result, blocks.shape[-1])

    inverse = None if change.inverse is None else placed(merged(change.inverse))
    return ChannelMap(placed(whole), edit(change.shift), inverse, new[outer])


def _is_block_wise(matrix: Array, sizes: Sequence[int], inner: int) -> bool:
    whole = _block_diagonal(_blocks(matrix, sizes, inner), sizes, inner)
    return bool(np.array_equal(whole, matrix))


def _blocks(matrix: Array, sizes: Sequence[int], inner: int) -> Array:
    """What ``_block_diagonal`` puts together."""
    rows = np.moveaxis(np.arange(math.prod(sizes)).reshape(sizes), inner, -1)
    return np.moveaxis(matrix[rows[..., :, None], rows[..., None, :]], -2, inner)


def _block_diagonal(matrices: Array, sizes: Sequence[int], inner: int) -> Array:
    """The matrices along axis ``inner`` of a row-major group of axes as one on all of the group."""
    blocks = np.broadcast_to(matrices, (*sizes, matrices.shape[-1]))
    blocks = np.moveaxis(blocks, inner, -2)
    rows = np.moveaxis(np.arange(math.prod(sizes)).reshape(sizes), inner, -1)
    whole = alike(np.zeros((rows.size, rows.size)), matrices)
    whole[rows[..., :, None], rows[..., None, :]] = blocks
    return whole


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which axes become which: runs of axes of the same product, without axes of size 1."""
    old = [a for a, size in enumerate(before) if size != 1]
    new = [a for a, size in enumerate(after) if size != 1]
    groups = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (gap := math.prod(before[a] for a in left) - math.prod(after[a] for a in right)) != 0:
            (right if gap > 0 else left).append((new if gap > 0 else old).pop(0))
        groups.append((left, right))
    return groups


def _eye(size: int, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = size
    return np.eye(size).reshape(*shape, size)


def split_up(node: Node) -> Refusal:
    return Refusal(f"{called(node)} does not keep its channels whole")
