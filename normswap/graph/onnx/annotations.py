"""What an ONNX model itself says of its values' types and shapes, beside its inputs and outputs.

It matters to whoever reads the file: ONNX Runtime fuses an Add and a LayerNormalization into its
slower and less accurate SkipLayerNormalization only where it knows the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

Annotations = dict[str, tuple[ir.TypeProtocol | None, ir.Shape | None]]


def read_annotations(graph: ir.Graph) -> Annotations:
    """By the names of the values that nodes and initializers yield."""
    return {str(value.name): (value.type, value.shape) for value in _values(graph)}


def restore_annotations(graph: ir.Graph, said: Annotations) -> None:
    """Makes the model say again what it said, of other values nothing."""
    for value in _values(graph):
        value.type, value.shape = said.get(str(value.name), (None, None))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    interface = {*graph.inputs, *graph.outputs}
    yield from (v for v in graph.initializers.values() if v not in interface)
    for node in graph.all_nodes():
        yield from (v for v in node.outputs if v not in interface)
