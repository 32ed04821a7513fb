"""Where a scale goes through though no other map does: products of two values, attention, ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normswap.graph.graph import Value
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.moves import known_shape
from normswap.passes.algebra.place import Maps, Place
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal, called

_VALUES = 2  # which input of a fused attention is weighed


def scale(factor: float, rank: int) -> ChannelMap:
    """y = factor x, all channels alike; it may be undone."""
    shape = (1,) * rank
    return ChannelMap(np.full(shape, factor), np.zeros(shape), np.full(shape, 1 / factor))


def is_scale(change: ChannelMap) -> bool:
    """Whether it is a scale s > 0, all channels alike."""
    return change.axis is None and change.compact().linear.size == 1 and is_positive(change)


def is_positive(change: ChannelMap) -> bool:
    """Whether it is diag(s) with all s > 0."""
    return change.axis is None and not change.shifts and bool(np.all(change.linear > 0))


def of_sign(place: Place) -> Maps:
    """ReLU and its kind: f(s x) = s f(x)."""
    x, y = place.node.data_input(), place.node.output
    change = place.known.get(x) or place.known.get(y)
    if change is None or not is_positive(change):
        raise place.refusal()
    yield x, change
    yield y, change


def of_product(place: Place) -> Maps:
    """(s A) B = A (s B) = s (A B), of two computed operands."""
    yield from _of_factors(place, place.node.dynamic_inputs())


def of_attention(place: Place) -> Maps:
    """softmax(q k^T) (s v) = s (softmax(q k^T) v)."""
    node = place.node
    values = node.input(_VALUES)
    others = [v for v in node.dynamic_inputs() if v is not values]
    behind = [v for v in node.outputs[1:] if v.uses or v in place.graph.outputs]
    if values is None or behind or any(v in place.known for v in others):
        raise place.refusal()
    if node.inputs.count(values) > 1:  # what is weighed is also what weighs
        raise place.refusal()
    yield from _of_factors(place, [values])


def _of_factors(place: Place, operands: Sequence[Value]) -> Maps:
    """Of a result that is scaled as the product of its ``operands`` is."""
    y = place.node.output
    known = [place.known[v] for v in operands if v in place.known]
    total = place.known.get(y)
    if not all(is_scale(change) for change in (*known, *([] if total is None else [total]))):
        raise place.refusal()
    if len(set(operands)) < len(operands):  # a square
        raise place.refusal()
    product = float(np.prod([change.compact().linear for change in known]))
    if total is None:
        yield y, _like(product, y, place.inverts)
        return
    wanted = float(total.compact().linear.reshape(()))
    if len(known) == len(operands):
        if wanted != product:
            raise Refusal(f"{called(place.node)} multiplies what changes in different ways")
        return
    if known:
        rest = [v for v in operands if v not in place.known]
        if wanted != product:
            yield rest[0], _like(wanted / product, rest[0], place.inverts)
        return
    operand = next((v for v in operands if _is_of_weight(v, place.edits)), operands[-1])
    yield operand, _like(wanted, operand, place.inverts)


def _like(factor: float, value: Value, inverts: bool) -> ChannelMap:
    change = scale(factor, len(known_shape(value)))
    return change if inverts else ChannelMap(change.linear, change.shift)


def _is_of_weight(value: Value, edits: WeightEdits) -> bool:
    """Whether a weight writes it, perhaps by way of moves, sums and multiples."""
    node = value.producer
    while node is not None:
        if edits.weight_of(node) is not None:
            return True
        if not (node.operator.move or node.operator.combines_two):
            return False
        node = next((v.producer for v in node.dynamic_inputs()), None)
    return False
