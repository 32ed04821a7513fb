"""Sizes and dtypes of an ONNX graph's values, by ONNX's shape inference."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript.optimizer import fold_constants

from normswap.graph.onnx_sizes import example_shapes, forget_shapes

ValueType = tuple[tuple[int, ...] | None, np.dtype[Any] | None]
_log = logging.getLogger(__name__)


def infer_types(model: ir.Model) -> dict[str, ValueType]:
    """Sizes and dtypes of values, at the inputs' ``example_shapes``."""
    shapes = example_shapes(model)
    sized = model.clone()
    for value in sized.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    forget_shapes(sized)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(sized)
    except Exception as error:  # inference is best effort: what it cannot give stays unknown
        _log.debug("shape inference failed: %s", error)
    types = _types(sized)
    if any(shape is None for shape, _ in types.values()):
        # Sizes that the graph computes from its own shapes are constants now.
        try:
            fold_constants(sized, onnx_shape_inference=True)
        except Exception as error:
            _log.debug("folding sizes failed: %s", error)
        else:
            known = {name: found for name, found in _types(sized).items() if found[0] is not None}
            types |= {name: known[name] for name in types if name in known}
    return types


def _types(model: ir.Model) -> dict[str, ValueType]:
    types: dict[str, ValueType] = {}
    for value in [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]:
        static = value.shape is not None and value.shape.is_static()
        shape = tuple(int(d) for d in value.shape) if static else None  # type: ignore[union-attr, arg-type]
        types[str(value.name)] = (shape, value.dtype.numpy() if value.dtype else None)
    return types
