"""Which tokens of a text count: padding must not enter any statistic.

A text holds padding after [EOS]. Under a causal mask nothing that is read depends on it, and its
statistics are not those of words.
"""

from __future__ import annotations

import numpy as np

from normswap.fit.calibration import Batches
from normswap.graph.graph import Array, Graph, Node, Value
from normswap.norms.site import Site

MASK_INPUT = "attention_mask"


def text_masks(
    graph: Graph, site: Site, final: Site | None, batches: Batches
) -> list[Array] | None:
    """Per batch booleans [samples, positions]: the tokens of a text tower on which ``site`` counts.

    Where the batches hold an ``attention_mask``, the tokens that it keeps. Where a choice of one
    token per text, [EOS] in CLIP, follows (or precedes) the tower's ``final`` norm, the tokens up
    to that one; for the final norm itself only the chosen ones. None where all tokens count.
    """
    chosen = None if final is None else _chosen(graph, final, batches)
    given = [b.get(MASK_INPUT) for b in batches]
    masks: list[Array] | None = None
    if all(mask is not None and mask.ndim == 2 for mask in given):
        masks = [np.asarray(mask) != 0 for mask in given]
    if chosen is None:
        return masks
    positions, length = chosen
    counter = np.arange(length)
    if final is not None and site.output == final.output:
        return [counter == p[:, None] for p in positions]
    upto = [counter <= p[:, None] for p in positions]
    if masks is None or any(m.shape != u.shape for m, u in zip(masks, upto, strict=True)):
        return upto
    return [m & u for m, u in zip(masks, upto, strict=True)]


def _chosen(graph: Graph, final: Site, batches: Batches) -> tuple[list[Array], int] | None:
    """The token that is chosen from each text, [samples] per batch, and the number of positions.

    The choice itself is run, on the numbers of the positions in place of activations.
    """
    node = _selection(graph, final)
    if node is None:
        return None
    data = _tokens(node)
    shape = data.shape
    if shape is None or len(shape) != 3 or data.dtype is None:
        return None
    inputs = [v for v in graph.sources([node.output], stop=[data]) if v.name in batches[0]]
    if not inputs or any(v.rank != 2 for v in inputs):
        return None
    try:
        run = graph.slice([*inputs, data], [node.output])
    except ValueError:  # the choice depends on what the calibration data lacks
        return None
    positions = []
    for batch in batches:
        ids = [batch[v.name] for v in inputs]
        count, length = ids[0].shape
        length += shape[1] - (inputs[0].shape or shape)[1]  # the tower may add tokens of its own
        numbers = np.broadcast_to(np.arange(length)[None, :, None], (count, length, shape[2]))
        (picked,) = run([*ids, np.ascontiguousarray(numbers, dtype=data.dtype)])
        picked = picked.reshape(-1, shape[2])[:, 0]
        if len(picked) != count:
            return None
        positions.append(picked.astype(np.intp))
    return positions, length


def _tokens(node: Node) -> Value:
    """What a choice picks from, before a reshape from [samples, positions, channels] if any."""
    data = node.data_input()
    while data.rank != 3 and data.producer and data.producer.operator.passes_through:
        data = data.producer.data_input()
    return data


def _selection(graph: Graph, final: Site) -> Node | None:
    """The choice of a computed position among the tokens around the final norm."""
    pending: list[Value] = [graph.value(final.output)]
    while pending:
        for node in pending.pop().readers:
            if _selects(node):
                return node
            if node.operator.passes_through:
                pending.extend(node.outputs)
    producer = graph.value(final.input).producer
    while producer is not None:
        if _selects(producer):
            return producer
        passes = producer.operator.passes_through
        producer = producer.data_input().producer if passes else None
    return None


def _selects(node: Node) -> bool:
    index = node.input(1)  # absent where it is an attribute
    return node.operator.selects and index is not None and not index.is_constant
