"""Whether ONNX Runtime takes a model at all: what operators are called, and what they are given."""

from __future__ import annotations

import onnx_ir as ir

from normswap.errors import first_line, root_cause
from normswap.graph.onnx.evaluate import runtime_session
from normswap.graph.onnx.shapes import outline


def refusal(model: ir.Model) -> str:
    """Why ONNX Runtime does not load a model, in one line; '' if it does.

    It is asked without the large weights, and without optimising: their contents do not matter.
    """
    try:
        runtime_session(outline(model, {}))
    except Exception as error:  # a damaged model may lead to any
        return first_line(root_cause(error))
    return ""
