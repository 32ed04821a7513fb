"""Sizes and dtypes of an ONNX graph's values, by ONNX's shape inference."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

EXAMPLE_SIZE = 2  # the size that a dynamic dimension takes in ``Value.shape``
ValueType = tuple[tuple[int, ...] | None, np.dtype[Any] | None]
_log = logging.getLogger(__name__)


def infer_types(model: ir.Model) -> dict[str, ValueType]:
    """Sizes and dtypes of values, with every dynamic input dimension set to ``EXAMPLE_SIZE``."""
    sized = model.clone()
    for value in sized.graph.inputs:
        if value.shape is not None and value.name not in sized.graph.initializers:
            sizes = [d if isinstance(d, int) else EXAMPLE_SIZE for d in value.shape]
            value.shape = ir.Shape(sizes)
    for node in sized.graph:
        for value in node.outputs:
            value.shape = None
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(sized)
    except Exception as error:  # inference is best effort: what it cannot give stays unknown
        _log.debug("shape inference failed: %s", error)
    types: dict[str, ValueType] = {}
    for value in [*sized.graph.inputs, *(v for node in sized.graph for v in node.outputs)]:
        static = value.shape is not None and value.shape.is_static()
        shape = tuple(int(d) for d in value.shape) if static else None  # type: ignore[union-attr, arg-type]
        types[str(value.name)] = (shape, value.dtype.numpy() if value.dtype else None)
    return types
