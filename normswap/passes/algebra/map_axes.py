"""What happens to the axes of a per-channel map: they move, come and go, split and merge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normswap.graph.graph import Array, Node
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.base import Refusal


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
            result = np.broadcast_to(_eye(size, axis, rank), (*shape, size)).copy()
            inner = np.moveaxis(result, axis, -2)
            inner[..., positions[:, None], positions] = np.moveaxis(array, axis, -2)
            return result
        result = np.broadcast_to(rest, (*shape, *tail)).copy()
        np.moveaxis(result, axis, 0)[positions] = np.moveaxis(array, axis, 0)
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
    whole = np.zeros((rows.size, rows.size))
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
    return Refusal(f"{node.op} '{node.output.name}' does not keep its channels whole")
