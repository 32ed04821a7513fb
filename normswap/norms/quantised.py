"""What looks like a norm and is one but for the rounding of its inner values.

Quantisation of a whole file puts a pair of QuantizeLinear and DequantizeLinear behind each operator
of a norm that is spelled out. Each pair rounds, so no formula is reproduced, and the norm is left
as it is. Without the pairs it can be proven: then that is the reason to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normswap.graph.graph import Graph, Node
from normswap.norms.decomposed import decomposed_norms
from normswap.norms.site import Rejection

QUANTISED = (
    "its inner values are quantised, and each is rounded, so it is no exact norm; swap before the "
    "file is quantised"
)
"""The reason for which a norm with pairs of quantisers inside is rejected."""


def with_quantised_told(graph: Graph, rejected: Sequence[Rejection]) -> list[Rejection]:
    """``rejected`` with ``QUANTISED`` as the reason of those that are norms without the pairs."""
    if not rejected or not any(_pair(node) for node in graph.nodes):
        return list(rejected)
    bare = graph.copy()
    for node in bare.nodes:
        if (quantiser := _pair(node)) is not None and node.output not in bare.outputs:
            bare.replace_uses(node.output, quantiser.data_input())
    bare.prune()
    covered = decomposed_norms(bare).covered
    norms = {node.scope or node.output.name for node in covered}
    return [replace(r, reason=QUANTISED) if r.where in norms else r for r in rejected]


def _pair(node: Node) -> Node | None:
    """The quantiser of a computed value whose codes a node makes numbers of again."""
    before = node.inputs[0].producer if node.inputs and node.inputs[0] is not None else None
    if node.operator.quantises != "back" or before is None:
        return None
    dynamic = before.inputs[0] is not None and not before.inputs[0].is_constant
    return before if before.operator.quantises == "there" and dynamic else None
