"""How operators that move, copy, pick or average values move the axes of a per-channel map.

One reader per kind of operator; ``rules.py`` says which operator has which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.passes.algebra.channel_map import (
    ChannelMap,
    embedded,
    regrouped,
    section,
    split_up,
    transposed,
    with_axis,
    without_axis,
)
from normswap.passes.base import Refusal, called

_FIRST_SPATIAL_AXIS = 2


@dataclass(frozen=True)
class Move:
    """What an operator does to the axes of a map, from its first input to one of its outputs.

    ``ahead``: from the map of the input to that of the output. ``back`` proposes a map of the input
    for one of the output. Where the operator takes a part of its input there are two: the map on
    all of it, or (with True) on that part alone. Both raise Refusal where there is none.
    """

    ahead: Callable[[ChannelMap], ChannelMap]
    back: Callable[[ChannelMap, bool], ChannelMap]

    def backward(self, change: ChannelMap, part: bool, node: Node) -> ChannelMap:
        """What ``back`` proposes, if ``ahead`` gives ``change`` for it. Raises Refusal if not."""
        proposed = self.back(change, part).compact()
        if not self.ahead(proposed).compact().is_same(change.compact()):
            raise split_up(node)
        return proposed


MoveReader = Callable[[Graph, Node, int], Move]
"""Takes a graph, a node of it, and the number of one of the node's outputs."""


def known_shape(value: Value) -> tuple[int, ...]:
    """The sizes of ``value``. Raises Refusal where they are not known."""
    if value.shape is None:
        raise Refusal(f"'{value.name}' has no known shape")
    return value.shape


# -- readers ---------------------------------------------------------------------------------------


def same(graph: Graph, node: Node, output: int) -> Move:
    return Move(lambda change: change, lambda change, part: change)


def cast(graph: Graph, node: Node, output: int) -> Move:
    dtype = node.output.dtype
    if dtype is None or not is_floating(dtype):
        raise Refusal(f"{called(node)} rounds it to {dtype}")
    return same(graph, node, output)


def dropout(graph: Graph, node: Node, output: int) -> Move:
    if node.attributes.get("training_mode"):
        raise Refusal(f"{called(node)} is in training mode")
    return same(graph, node, output)


def transpose(graph: Graph, node: Node, output: int) -> Move:
    perm = tuple(_known(node, "perm"))
    back = tuple(perm.index(a) for a in range(len(perm)))
    return Move(lambda change: transposed(change, perm), lambda change, _: transposed(change, back))


def reshape(graph: Graph, node: Node, output: int) -> Move:
    before, after = known_shape(node.data_input()), known_shape(node.outputs[output])
    return Move(
        lambda change: regrouped(change, before, after, node),
        lambda change, part: regrouped(change, after, before, node),
    )


def slices(graph: Graph, node: Node, output: int) -> Move:
    shape, picks = known_shape(node.data_input()), []
    steps = node.attributes.get("steps") or ()
    axes = node.attributes.get("axes")
    if axes is None:  # where it starts or ends is computed; the axes may be known all the same
        given = node.input(3)
        array = graph.constant(given) if given is not None else None
        axes = [] if array is None else [int(a) % len(shape) for a in array.reshape(-1)]
        if not axes:
            raise split_up(node)
    for number, axis in enumerate(axes):
        positions = None
        if "starts" in node.attributes:
            start, end = node.attributes["starts"][number], node.attributes["ends"][number]
            positions = np.arange(shape[axis])[start : end : steps[number]]
        picks.append((axis, positions, shape[axis]))
    return _selection(node, picks)


def gather(graph: Graph, node: Node, output: int) -> Move:
    axis, data = _known(node, "axis"), node.data_input()
    size = known_shape(data)[axis]
    indices, positions = node.input(1), None
    if node.attributes.get("index") is not None:
        positions = np.array([node.attributes["index"]])
    elif indices is not None and indices.is_constant and (indices.rank or 0) <= 1:
        array = graph.constant(indices)
        positions = None if array is None else array.reshape(-1)
    if positions is not None:
        positions = np.where(positions < 0, positions + size, positions)
        positions = positions if len(set(positions.tolist())) == len(positions) else None
    new = _rank(node.output) - _rank(data) + 1
    return _selection(node, [(axis, positions, size)], dropped=axis if new != 1 else None, new=new)


def split(graph: Graph, node: Node, output: int) -> Move:
    axis, keeps = _known(node, "axis"), node.attributes["keepdims"]
    shapes = [value.shape for value in node.outputs]
    sizes = [1 if not keeps else None if shape is None else shape[axis] for shape in shapes]
    start, positions = 0, None
    if all(size is not None for size in sizes[: output + 1]):
        ends = np.cumsum([size or 0 for size in sizes])
        start = 0 if output == 0 else int(ends[output - 1])
        positions = np.arange(start, int(ends[output]))
    size = known_shape(node.data_input())[axis]
    return _selection(node, [(axis, positions, size)], dropped=None if keeps else axis)


def _selection(
    node: Node,
    picks: Sequence[tuple[int, Array | None, int]],
    dropped: int | None = None,
    new: int = 0,
) -> Move:
    """Takes (positions or None where unknown, of how many) along axes; ``dropped`` is one of them
    that becomes ``new`` axes."""

    def ahead(change: ChannelMap) -> ChannelMap:
        for axis, positions, _ in picks:
            change = section(change, axis, positions, node)
        if dropped is not None:
            change = without_axis(change, dropped, node)
            for _ in range(new):
                change = with_axis(change, dropped)
        return change

    def back(change: ChannelMap, part: bool) -> ChannelMap:
        if dropped is not None:
            for _ in range(new):
                change = without_axis(change, dropped, node)
            change = with_axis(change, dropped)
        for axis, positions, size in picks:
            if part or change.varies(axis):
                change = embedded(change, axis, positions, size)
        return change

    return Move(ahead, back)


def gather_nd(graph: Graph, node: Node, output: int) -> Move:
    """The first ``depth`` axes are indexed; what comes out of them are the first axes."""
    depth = int(_known(node, "depth"))
    lead = _rank(node.output) - (_rank(node.data_input()) - depth)
    return Move(
        lambda change: _replace_leading(change, depth, lead, node),
        lambda change, part: _replace_leading(change, lead, depth, node),
    )


def expand(graph: Graph, node: Node, output: int) -> Move:
    before, after = known_shape(node.data_input()), known_shape(node.output)
    more = len(after) - len(before)
    stretched = [more + a for a, size in enumerate(before) if after[more + a] != size]

    def back(change: ChannelMap, part: bool) -> ChannelMap:
        return _replace_leading(_unvarying(change, stretched, node), more, 0, node)

    return Move(lambda change: _replace_leading(change, 0, more, node), back)


def _replace_leading(change: ChannelMap, old: int, new: int, node: Node) -> ChannelMap:
    for _ in range(old):
        change = without_axis(change, 0, node)
    for _ in range(new):
        change = with_axis(change, 0)
    return change


def mean(graph: Graph, node: Node, output: int) -> Move:
    return _reduction(node, sums=False)


def total(graph: Graph, node: Node, output: int) -> Move:
    return _reduction(node, sums=True)


def _reduction(node: Node, sums: bool) -> Move:
    """An average, or a sum, over some axes."""
    axes = tuple(_known(node, "axes"))
    dropped = () if node.attributes.get("keepdims", 1) else axes

    def ahead(change: ChannelMap) -> ChannelMap:
        change = _unvarying(change, axes, node)
        for axis in sorted(dropped, reverse=True):
            change = without_axis(change, axis, node)
        return _unshifted(change, node, "sums up") if sums else change

    def back(change: ChannelMap, part: bool) -> ChannelMap:
        for axis in sorted(dropped):
            change = with_axis(change, axis)
        return change

    return Move(ahead, back)


def _along(
    axes: Callable[[Node], Sequence[int]], zeros: Callable[[Node], bool] = lambda node: False
) -> MoveReader:
    """For operators that work along some axes and keep them: channels lie on another one, and
    where they bring in ``zeros``, nothing may be shifted."""

    def read(graph: Graph, node: Node, output: int) -> Move:
        def ahead(change: ChannelMap) -> ChannelMap:
            change = _unvarying(change, axes(node), node)
            return _unshifted(change, node, "pads") if zeros(node) else change

        return Move(ahead, lambda change, part: change)

    return read


def _tiled_axes(node: Node) -> list[int]:
    return [a for a, count in enumerate(_known(node, "repeats")) if count != 1]


def _spatial(node: Node) -> range:
    return range(_FIRST_SPATIAL_AXIS, _rank(node.data_input()))


def _averages_zeros(node: Node) -> bool:
    if node.attributes.get("ceil_mode") or node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise split_up(node)
    return any(node.attributes.get("pads") or ()) and node.attributes["count_include_pad"] == 1


def _padded_axes(node: Node) -> list[int]:
    pads, axes = node.attributes.get("pads"), node.attributes.get("axes")
    if pads is None:  # computed: on which axes shows in the sizes
        before, after = known_shape(node.data_input()), known_shape(node.output)
        return [a for a, size in enumerate(before) if after[a] != size]
    count = len(pads) // 2
    axes = range(count) if axes is None else axes
    return [a for i, a in enumerate(axes) if pads[i] or pads[count + i]]


def _pads_with_zeros(node: Node) -> bool:
    if node.attributes.get("mode", "constant") not in ("constant", b"constant"):
        return False
    if node.attributes.get("value") or node.input(2) is not None:
        raise split_up(node)
    return "pads" not in node.attributes or bool(_padded_axes(node))


def resize(graph: Graph, node: Node, output: int) -> Move:
    """Interpolation: weights that add up to one, alike for all channels of an axis that keeps its
    size. Those of ONNX's cubic one add up to one only as far as its float32 coefficient says."""
    axes = _resized_axes(graph, node)

    def ahead(change: ChannelMap) -> ChannelMap:
        change = _unvarying(change, axes, node)
        return _unshifted(change, node, "is cubic") if _text(node, "mode") == "cubic" else change

    return Move(ahead, lambda change, part: change)


def _resized_axes(graph: Graph, node: Node) -> Sequence[int]:
    attributes, before = node.attributes, known_shape(node.data_input())
    if attributes.get("resized") is not None:
        return list(attributes["resized"])
    if _text(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Refusal(f"{called(node)} fills in what lies outside")
    axes = list(attributes.get("axes") or range(len(before)))
    scales, given = attributes.get("scales"), node.input(1 if len(node.inputs) == 2 else 2)
    if scales is None and given is not None and given.shape != (0,):
        array = graph.constant(given)
        if array is None:  # computed
            return axes
        scales = array.reshape(-1)
    if scales is not None and len(scales):
        return [axis for axis, scale in zip(axes, scales, strict=True) if scale != 1]
    if _text(node, "keep_aspect_ratio_policy") not in ("", "stretch"):
        return axes
    after = known_shape(node.output)
    return [axis for axis in axes if before[axis] != after[axis]]


def _text(node: Node, name: str) -> str:
    value = node.attributes.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


tile = _along(_tiled_axes)
roll = _along(lambda node: _known(node, "axes"))
average_of_all = _along(_spatial)
average_of_neighbours = _along(_spatial, _averages_zeros)
pad = _along(_padded_axes, _pads_with_zeros)


def _unvarying(change: ChannelMap, axes: Sequence[int], node: Node) -> ChannelMap:
    if any(change.varies(axis) for axis in axes):
        raise split_up(node)
    return change


def _unshifted(change: ChannelMap, node: Node, does: str) -> ChannelMap:
    if change.shifts:
        raise Refusal(f"{called(node)} {does}, where a shift would change")
    return change


def _known(node: Node, name: str) -> Any:
    value = node.attributes.get(name)
    if value is None:
        raise Refusal(f"what {called(node)} does depends on the input")
    return value


def _rank(value: Value) -> int:
    return len(known_shape(value))
