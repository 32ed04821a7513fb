"""The fold algebra downward: a per-channel map on a value moves into what reads the value.

| reader | rule |
|---|---|
| Linear | W' = W diag(s), b' = b + W t; one without a bias gains it |
| Conv | W' = W diag(s); b' = b + sum over the kernel of W t, only without zero padding |
| Identity, Cast, Dropout, Transpose, Reshape, Slice, Gather, Split, Expand, ReduceMean | through, \
where the channel axis stays whole |
| Shape | reads sizes only |

All readers must take it, or none does.
"""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.passes.base import Refusal
from normswap.passes.channel_map import Action, ChannelMap, axis_after
from normswap.passes.weight_edits import WeightEdits


def push_down(graph: Graph, edits: WeightEdits, value: Value, change: ChannelMap) -> list[Action]:
    """The actions that let every reader of ``value`` read scale * value + shift in its place.

    Nothing is changed before they are called. Raises Refusal where a reader cannot take the map.
    """
    if value in graph.outputs:
        raise Refusal(f"'{value.name}' is an output of the model")
    actions: list[Action] = []
    for node, index in value.uses:
        actions += _into(graph, edits, node, index, change)
    return actions


def _into(
    graph: Graph, edits: WeightEdits, node: Node, index: int, change: ChannelMap
) -> list[Action]:
    if node.op == "Shape":
        return []
    if index == 0:
        linear = edits.linear(node)
        if linear is not None:
            return [_into_linear(edits, node, change)]
        if node.op == "Conv":
            return [_into_conv(edits, node, change)]
        moved = change.along(axis_after(node, change.axis))
        return [a for out in node.outputs for a in push_down(graph, edits, out, moved)]
    raise Refusal(f"{node.op} '{node.output.name}' reads it")


def _into_linear(edits: WeightEdits, node: Node, change: ChannelMap) -> Action:
    linear = edits.linear(node)
    assert linear is not None
    if change.axis != linear.axis or change.size != linear.weight.shape[1]:
        raise Refusal(f"'{linear.name}' multiplies along another axis")

    def act() -> None:
        shift = linear.weight @ change.shift
        bias = linear.bias
        if bias is not None:
            bias = bias + shift
        elif np.any(shift):
            bias = shift
        edits.change_linear(linear, linear.weight * change.scale, bias)

    return act


def _into_conv(edits: WeightEdits, node: Node, change: ChannelMap) -> Action:
    kernel = edits.constant(node, 1)
    if kernel is None or change.axis != 1 or kernel.shape[1] != change.size:
        raise Refusal(f"the convolution '{node.output.name}' does not read it channel by channel")
    if np.any(change.shift) and _is_padded(node):
        raise Refusal(f"the convolution '{node.output.name}' pads with zeros, which a shift moves")
    if node.input(2) is None and np.any(change.shift):
        raise Refusal(f"the convolution '{node.output.name}' has no bias to take the shift")

    def act() -> None:
        weight = edits.constant(node, 1)
        assert weight is not None
        spatial = (1,) * (weight.ndim - 2)
        shift = weight.sum(axis=tuple(range(2, weight.ndim))) @ change.shift
        edits.change_constant(node, 1, weight * change.scale.reshape(1, -1, *spatial))
        bias = edits.constant(node, 2)
        if bias is not None:
            edits.change_constant(node, 2, bias + shift)

    return act


def _is_padded(node: Node) -> bool:
    pads = node.attributes.get("pads") or ()
    return any(pads) or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
