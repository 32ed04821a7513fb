"""Norms spelled out in elementary operators: candidate regions, each proven numerically.

A candidate starts at an *anchor* (a root over a statistic), takes as *entry* a value upstream
through which all that is dynamic in the anchor flows, and as *exits* the values downstream of the
entry's shape that depend on the entry and constants alone. ``proof.py`` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from normswap.graph.graph import Graph, Node, Value
from normswap.locate.names import site_name
from normswap.locate.passthrough import PASS_THROUGH
from normswap.locate.proof import Proof, prove_layer_norm
from normswap.locate.site import Rejection, Site

_REGION_LIMIT = 24  # nodes; the longest spelling of a norm that is known has 14
_STATISTICS = frozenset(
    {"ReduceMean", "ReduceSum", "aten.var.correction", "aten.var_mean.correction"}
)
_BARRIERS = frozenset(
    {
        "Linear",
        "MatMul",
        "Gemm",
        "Conv",
        "Attention",
        "Softmax",
        "Gather",
        "LayerNormalization",
        "RMSNormalization",
        "BatchNormalization",
        "Concat",
        "Split",
    }
)


def decomposed_norms(graph: Graph) -> tuple[list[Site], list[Rejection]]:
    """The decomposed norms of a graph, and the candidates that are none, with the reason."""
    sites: list[Site] = []
    rejected: list[Rejection] = []
    covered: set[Node] = set()
    for anchor in graph.nodes:
        if anchor in covered or not _is_anchor(graph, anchor):
            continue
        found = _prove_at(graph, anchor)
        if isinstance(found, _Region):
            sites.append(_site(graph, found))
            covered |= set(found.nodes)
        else:
            rejected.append(Rejection(anchor.scope or anchor.output.name, found))
    return sites, rejected


@dataclass
class _Region:
    """A proven region: from ``entry`` to ``exit`` through ``nodes``."""

    entry: Value
    exit: Value
    nodes: list[Node]
    proof: Proof


def _is_anchor(graph: Graph, node: Node) -> bool:
    """A root over a statistic of something dynamic."""
    is_root = node.op in ("Sqrt", "Rsqrt") or (
        node.op == "Pow" and graph.scalar(node.input(1)) in (0.5, -0.5)
    )
    if not is_root or node.data_input().is_constant or not node.data_input().rank:
        return False
    value: Value | None = node.data_input()
    for _ in range(_REGION_LIMIT):
        if value is None or value.producer is None:
            return False
        if value.producer.op in _STATISTICS:
            return True
        dynamic = value.producer.dynamic_inputs()
        value = dynamic[0] if dynamic else None
    return False


def _prove_at(graph: Graph, anchor: Node) -> _Region | str:
    """The region around ``anchor`` that is a norm, or why there is none."""
    tried = 0
    for entry in _entries(anchor):
        for exit_value in _exits(graph, entry, anchor):
            tried += 1
            proof = prove_layer_norm(graph, entry, exit_value)
            if proof is not None:
                nodes = graph.ancestors([exit_value], stop=[entry])
                return _Region(entry, exit_value, nodes, proof)
    return "it does not equal a LayerNorm over the last axis" if tried else "no closed region"


def _entries(anchor: Node) -> list[Value]:
    """Values upstream of the anchor through which everything dynamic in it flows, nearest first."""
    order: list[Value] = []
    level = anchor.dynamic_inputs()
    for _ in range(_REGION_LIMIT):
        fresh = [v for v in dict.fromkeys(level) if v not in order]
        order += fresh
        level = [
            w
            for v in fresh
            if v.producer is not None and v.producer.op not in _BARRIERS
            for w in v.producer.dynamic_inputs()
        ]
        if not level or len(order) > _REGION_LIMIT:
            break
    full = [v for v in order if v.rank and v.shape is not None and v.shape[-1] > 1]
    return [v for v in full if _closes(anchor, v)]


def _closes(anchor: Node, entry: Value) -> bool:
    """Whether the anchor depends on ``entry`` and constants alone, within a small region."""
    pending, visited = [anchor], {anchor}
    while pending:
        for value in pending.pop().dynamic_inputs():
            node = value.producer
            if value is entry or (node is not None and node in visited):
                continue
            if node is None or len(visited) > _REGION_LIMIT:
                return False
            visited.add(node)
            pending.append(node)
    return True


def _exits(graph: Graph, entry: Value, anchor: Node) -> list[Value]:
    """Values of the entry's shape that depend on it alone and on the anchor; farthest first.

    What only moves or copies a value behind the norm is not part of it.
    """
    known, behind_anchor = {entry}, set(anchor.outputs)
    exits: list[Value] = []
    grown = True
    nodes: set[Node] = set()
    while grown and len(nodes) <= _REGION_LIMIT:
        grown = False
        for node in dict.fromkeys(n for v in known for n in v.readers):
            if node in nodes or node.op in _BARRIERS:
                continue
            dynamic = node.dynamic_inputs()
            if not all(v in known for v in dynamic):
                continue
            if node.op in _STATISTICS and any(v in behind_anchor for v in dynamic):
                continue  # the next norm begins: two with plain affines would equal one
            nodes.add(node)
            grown = True
            known = known | set(node.outputs)
            if node is anchor or any(v in behind_anchor for v in dynamic):
                behind_anchor |= set(node.outputs)
                exits += [v for v in node.outputs if v.shape == entry.shape and v is not entry]
    position = {node: index for index, node in enumerate(graph.nodes)}
    computed = [
        (position[v.producer], v)
        for v in exits
        if v.producer is not None and v.producer is not anchor and v.producer.op not in PASS_THROUGH
    ]
    return [v for _, v in sorted(computed, key=lambda item: -item[0])]


def _site(graph: Graph, region: _Region) -> Site:
    proof = region.proof
    working = [n for n in region.nodes if n.dynamic_inputs()]
    constants = [v for n in working for v in n.inputs if v is not None and v.is_constant]
    axis = len(region.entry.shape or ()) - 1
    return Site(
        name=site_name(working, constants),
        kind="layer_norm",
        axes=(axis,),
        normalized_shape=proof.weight.shape,
        epsilon=proof.epsilon,
        weight=None if proof.is_plain_weight else proof.weight,
        bias=None if proof.is_plain_bias else proof.bias,
        input=region.entry.name,
        output=region.exit.name,
        spelling="decomposed",
    )
