"""Whether ONNX Runtime takes a model at all: what operators are called, and what they are given."""

from __future__ import annotations

import onnx_ir as ir

from normswap.errors import first_line
from normswap.graph.onnx.shapes import outline


def refusal(model: ir.Model) -> str:
    """Why ONNX Runtime does not load a model, in one line; '' if it does.

    It is asked without the large weights, and without optimising: their contents do not matter.
    """
    import onnxruntime  # much is done without it

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised, not printed
    try:
        message = outline(model, {}).SerializeToString()
        onnxruntime.InferenceSession(message, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        return first_line(error)
    return ""
