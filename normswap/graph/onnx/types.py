"""Sizes and dtypes of an ONNX graph's values, by ONNX's shape inference."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normswap.graph.onnx.known_sizes import KnownSizes
from normswap.graph.onnx.outline import fix, outline
from normswap.graph.onnx.sizes import example_shapes

ValueType = tuple[tuple[int, ...] | None, np.dtype[Any] | None]
_log = logging.getLogger(__name__)


def infer_types(model: ir.Model) -> dict[str, ValueType]:
    """Sizes and dtypes of values, at the inputs' ``example_shapes``.

    The nodes of ``model`` are in topological order.
    """
    proto = outline(model, example_shapes(model))
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    types = _inferred(proto, values)
    sizes = KnownSizes(model.graph)
    # What the graph computes from shapes gives other values their shapes, stage by stage.
    while found := sizes.found({name: shape for name, (shape, _) in types.items()}):
        fix(proto, found)
        types |= _inferred(proto, [v for v in values if types[str(v.name)][0] is None])
    return types


def _inferred(proto: onnx.ModelProto, values: Iterable[ir.Value]) -> dict[str, ValueType]:
    try:
        # Without data_prop: KnownSizes does more, in less time and memory.
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception as error:  # inference is best effort: what it cannot give stays unknown
        _log.debug("shape inference failed: %s", error)
        graph = proto.graph
    infos = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    return {str(v.name): _type(v, infos.get(str(v.name))) for v in values}


def _type(value: ir.Value, info: onnx.ValueInfoProto | None) -> ValueType:
    """What was inferred of ``value``, else what the model says of its dtype."""
    kind = value.dtype
    if info is None or not info.type.HasField("tensor_type"):
        return None, kind.numpy() if kind else None
    tensor = info.type.tensor_type
    if tensor.elem_type:
        kind = ir.DataType(tensor.elem_type)
    dims = tensor.shape.dim
    known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(d.dim_value for d in dims) if known else None, kind.numpy() if kind else None
