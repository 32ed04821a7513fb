"""The fold algebra upward: a per-channel map on a value moves into what computes the value.

| producer | rule |
|---|---|
| Linear, Conv | W' = diag(s) W, b' = s b + t; one without a bias gains it |
| a constant (class token, position embedding) | c' = s c + t |
| Add | the scale into every operand, the shift into exactly one (a constant if there is one) |
| Concat on another axis | scale and shift into every branch |
| Identity, Cast, Dropout, Transpose, Reshape, Slice, Gather, Expand | through, where the channel \
axis stays whole |

On the way up nothing else may read the values that change.
"""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Graph, Node
from normswap.graph.linear import linear_writing
from normswap.passes.base import Refusal
from normswap.passes.channel_map import Action, ChannelMap, axis_before
from normswap.passes.weight_edits import WeightEdits

_NO_PULL = frozenset({"Split", "ReduceMean"})  # their other results would change as well


def pull_up(
    graph: Graph, edits: WeightEdits, node: Node, index: int, change: ChannelMap
) -> list[Action]:
    """The actions that turn input ``index`` of ``node`` into scale * it + shift.

    ``node`` is to be its only reader. Nothing is changed before the actions are called. Raises
    Refusal where the map cannot move up.
    """
    value = node.data_input(index)
    if value.is_constant:
        return [_into_constant(edits, node, index, change)]
    readers = [use for use in value.uses if use[0].op != "Shape"]
    if len(readers) != 1 or value in graph.outputs:
        raise Refusal(f"'{value.name}' is read elsewhere too")
    producer = value.producer
    if producer is None:
        raise Refusal(f"'{value.name}' is an input of the model")
    linear = linear_writing(graph, value)
    if linear is not None:
        return [_into_linear(edits, linear.product, change)]
    if producer.op == "Conv":
        return [_into_conv(graph, edits, producer, change)]
    if producer.op == "Add":
        return _into_add(graph, edits, producer, change)
    if producer.op == "Concat":
        if producer.attributes["axis"] == change.axis:
            raise Refusal(f"Concat '{value.name}' puts its channels together")
        branches = range(len(producer.inputs))
        return [a for i in branches for a in pull_up(graph, edits, producer, i, change)]
    if producer.op in _NO_PULL:
        raise Refusal(f"{producer.op} '{value.name}' computes it")
    moved = change.along(axis_before(producer, change.axis))
    return pull_up(graph, edits, producer, 0, moved)


def _into_linear(edits: WeightEdits, product: Node, change: ChannelMap) -> Action:
    linear = edits.linear(product)
    assert linear is not None
    rank = product.output.rank or 0
    axis = 1 if product.op == "Conv" else rank - 1
    if change.axis != axis or change.size != linear.weight.shape[0]:
        raise Refusal(f"'{linear.name}' writes its channels to another axis")

    def act() -> None:
        bias = np.zeros(change.size) if linear.bias is None else linear.bias
        bias = change.scale * bias + change.shift
        keep_none = linear.bias is None and not np.any(bias)
        edits.change_linear(
            linear, change.scale[:, None] * linear.weight, None if keep_none else bias
        )

    return act


def _into_conv(graph: Graph, edits: WeightEdits, node: Node, change: ChannelMap) -> Action:
    kernel = edits.constant(node, 1)
    if kernel is None or change.axis != 1 or kernel.shape[0] != change.size:
        raise Refusal(f"the convolution '{node.output.name}' has no constant kernel per channel")
    if node.input(2) is not None and edits.constant(node, 2) is None:
        raise Refusal(f"the convolution '{node.output.name}' has a bias that is no constant")

    def act() -> None:
        weight = edits.constant(node, 1)
        assert weight is not None
        shape = (-1,) + (1,) * (weight.ndim - 1)
        edits.change_constant(node, 1, weight * change.scale.reshape(shape))
        if node.input(2) is None and np.any(change.shift):
            dtype = node.data_input(1).dtype
            name = f"{node.data_input(1).name.removesuffix('.weight')}.bias"
            zeros = np.zeros(change.size, dtype)
            graph.set_input(node, 2, graph.add_constant(zeros, name))
        bias = edits.constant(node, 2)
        if bias is not None:
            edits.change_constant(node, 2, change.scale * bias + change.shift)

    return act


def _into_constant(edits: WeightEdits, node: Node, index: int, change: ChannelMap) -> Action:
    rank = node.output.rank if node.op == "Add" else node.data_input(index).rank
    if rank is None or edits.constant(node, index) is None:
        raise Refusal(f"the constant '{node.data_input(index).name}' has no known shape")

    def act(rank: int = rank) -> None:
        array = edits.constant(node, index)
        assert array is not None
        edits.change_constant(node, index, change.apply(array, rank))

    return act


def _into_add(graph: Graph, edits: WeightEdits, node: Node, change: ChannelMap) -> list[Action]:
    constants = [i for i in range(len(node.inputs)) if node.data_input(i).is_constant]
    takes_shift = constants[0] if constants else 0
    rank = node.output.rank
    actions: list[Action] = []
    for index in range(len(node.inputs)):
        part = change if index == takes_shift else change.without_shift()
        operand = node.data_input(index)
        if not operand.is_constant:
            if operand.rank is None or rank is None or operand.shape is None:
                raise Refusal(f"'{operand.name}' has no known shape")
            axis = part.axis - (rank - operand.rank)
            if axis < 0 or operand.shape[axis] != part.size:
                raise Refusal(f"Add '{node.output.name}' broadcasts its channels")
            part = part.along(axis)
        actions += pull_up(graph, edits, node, index, part)
    return actions
