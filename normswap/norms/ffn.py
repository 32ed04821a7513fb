"""The feed-forward network (MLP) of a block: its linear layers, whatever lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normswap.graph.graph import Graph, Value
from normswap.graph.linear import Linear, linear_writing
from normswap.norms.residuals import Residual, is_attention, is_product
from normswap.norms.site import Site


@dataclass(frozen=True)
class Ffn:
    """``first``: one linear layer, two of a SwiGLU that are apart, one where they are packed;
    ``second``: the one that writes to the residual stream."""

    first: tuple[Linear, ...]
    second: Linear


def ffn_of(graph: Graph, residuals: Sequence[Residual], site: Site) -> Ffn | None:
    """The FFN that ``site``, a ``pre_mlp`` or ``post_mlp`` norm, belongs to; None if it is not made
    of two stages of linear layers."""
    x, y = graph.value(site.input), graph.value(site.output)
    for residual in residuals:
        is_its = y in residual.inside or x.origin is residual.add.output
        if is_its and not residual.attends:
            second = _last_linear(graph, residual.branch)
            first = None if second is None else _first_linears(graph, second.input, residual)
            if second is not None and first:
                return Ffn(first, second)
    return None


def _last_linear(graph: Graph, value: Value) -> Linear | None:
    """What computes ``value``, norms, scales and moves behind it left aside."""
    while True:
        linear = linear_writing(graph, value)
        if linear is not None:
            return linear
        node = value.producer
        if node is None or is_product(node) or len(node.dynamic_inputs()) != 1:
            return None
        value = node.dynamic_inputs()[0]


def _first_linears(graph: Graph, value: Value, residual: Residual) -> tuple[Linear, ...] | None:
    """The linear layers that ``value`` is computed from, activations and products in between."""
    found: dict[Value, Linear] = {}
    pending, seen = [value], set[Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        linear = linear_writing(graph, value)
        if linear is not None:
            found[linear.output] = linear
            continue
        node = value.producer
        if node is None or value not in residual.inside or is_product(node) or is_attention(node):
            return None
        pending.extend(node.dynamic_inputs())
    return tuple(found.values())
