"""What a norm does in its model, decided from the structure of the graph around it.

The residual stream of a transformer block is ``x + f(norm(x))`` (pre-norm) or ``norm(x + f(x))``
(post-norm). Following a norm's output forward until a residual Add closes tells which one it is,
and whether an attention lies on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from normswap.graph.graph import Graph, Node, Value
from normswap.locate.passthrough import root
from normswap.locate.site import Site

_ATTENTION = frozenset({"Softmax", "Attention"})
_PRODUCTS = frozenset({"Linear", "MatMul", "Gemm", "Conv"})


def assign_roles(graph: Graph, sites: Sequence[Site]) -> list[Site]:
    """The sites with their roles."""
    outputs = {graph.value(site.output) for site in sites}
    return [replace(site, role=_role(graph, site, outputs)) for site in sites]


@dataclass
class _Forward:
    """What lies between a norm's output and the residual Adds that close on it."""

    closes_on_input: bool = False
    is_stream: bool = False
    attends: bool = False
    attends_directly: bool = False
    reaches_output: bool = False


def _role(graph: Graph, site: Site, norm_outputs: set[Value]) -> str:
    x, y = graph.value(site.input), graph.value(site.output)
    ahead = _look_ahead(graph, x, y)
    if ahead.attends_directly and _comes_from_product(x):
        return "query_key"
    if ahead.closes_on_input:
        return "pre_attention" if ahead.attends else "pre_mlp"
    branch = _normed_residual(x, norm_outputs)
    if branch is not None:
        return "post_attention" if _attends_behind(branch, norm_outputs) else "post_mlp"
    if ahead.is_stream:
        return "other" if _any_norm_behind(x, norm_outputs) else "embedding"
    # A final norm reads the stream; one that reads a product sits inside an FFN or a head.
    return "final" if ahead.reaches_output and not _comes_from_product(x) else "other"


def _look_ahead(graph: Graph, x: Value, y: Value) -> _Forward:
    seen = _Forward()
    stream, result = root(x), root(y)
    pending: list[tuple[Value, bool]] = [(y, False)]
    visited: set[tuple[Value, bool]] = set()
    while pending:
        value, behind_product = pending.pop()
        if (value, behind_product) in visited:
            continue
        visited.add((value, behind_product))
        seen.reaches_output |= value in graph.outputs
        for node, index in value.uses:
            if node.op == "Add" and len(node.dynamic_inputs()) == 2:
                other = root(node.data_input(1 - index))
                if other is stream:
                    seen.closes_on_input = True
                    continue
                if other is result or root(value) is result:
                    seen.is_stream = True
                    continue
            if node.op in _ATTENTION:
                seen.attends = True
                seen.attends_directly |= not behind_product
            behind = behind_product or (node.op in _PRODUCTS and len(node.dynamic_inputs()) == 1)
            pending.extend((out, behind) for out in node.outputs)
    return seen


def _comes_from_product(value: Value) -> bool:
    """Whether the value is a projection, heads split off or a bias added on the way."""
    while True:
        value = root(value)
        node = value.producer
        if node is None:
            return False
        if node.op in _PRODUCTS:
            return True
        if node.op in ("Split", "Gather") or (node.op == "Add" and len(node.dynamic_inputs()) == 1):
            value = node.dynamic_inputs()[0]
        else:
            return False


def _normed_residual(x: Value, norm_outputs: set[Value]) -> Value | None:
    """For ``x = norm_output + branch``: the branch."""
    node = root(x).producer
    if node is None or node.op != "Add" or len(node.dynamic_inputs()) != 2:
        return None
    first, second = node.dynamic_inputs()
    if root(first) in norm_outputs:
        return second
    return first if root(second) in norm_outputs else None


def _attends_behind(branch: Value, norm_outputs: set[Value]) -> bool:
    """Whether an attention lies between the branch's end and the norms behind it."""
    pending, visited = [branch], set()
    while pending:
        value = pending.pop()
        node = value.producer
        if value in visited or value in norm_outputs or node is None:
            continue
        visited.add(value)
        if node.op in _ATTENTION:
            return True
        pending.extend(node.dynamic_inputs())
    return False


def _any_norm_behind(x: Value, norm_outputs: set[Value]) -> bool:
    pending: list[Node | None] = [x.producer]
    visited: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if any(out in norm_outputs for out in node.outputs):
            return True
        pending.extend(v.producer for v in node.dynamic_inputs())
    return False
