"""ONNX graphs for tests, written in ONNX's text format."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from normswap.graph.onnx.graph import OnnxGraph, read_graph


def onnx_graph(
    text: str, constants: Mapping[str, np.ndarray] | None = None, opset: int = 18
) -> OnnxGraph:
    """The graph of ``text`` (``(inputs) => (outputs) { nodes }``) with these initializers."""
    header = f'<ir_version: 9, opset_import: ["" : {opset}]> test '
    proto = onnx.parser.parse_model(header + text)
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return read_graph(ir.serde.deserialize_model(proto))
