"""What the subgraphs of an ONNX node (If, Loop, Scan) read from outside."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def captured_values(node: ir.Node) -> list[ir.Value]:
    """The outer values that a node's subgraphs read."""
    found: dict[ir.Value, None] = {}
    for graph in _subgraphs(node):
        inner = {v for n in graph.all_nodes() for v in n.outputs} | set(graph.inputs)
        inner |= set(graph.initializers.values())
        reads = [v for n in graph.all_nodes() for v in n.inputs if v is not None]
        found.update(dict.fromkeys(v for v in [*reads, *graph.outputs] if v not in inner))
    return list(found)


def nested_operators(node: ir.Node) -> set[str]:
    """The types of all operators in a node's subgraphs, theirs included."""
    return {inner.op_type for graph in _subgraphs(node) for inner in graph.all_nodes()}


def replace_captured(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Lets a node's subgraphs read ``new`` where they read the outer value ``old``."""
    for graph in _subgraphs(node):
        for inner in graph.all_nodes():
            for index, value in enumerate(inner.inputs):
                if value is old:
                    inner.replace_input_with(index, new)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
