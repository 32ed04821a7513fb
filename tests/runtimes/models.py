"""A model of one node."""

from __future__ import annotations

import onnx_ir as ir
from onnx import TensorProto, helper

from normswap import Model, load


def one_node(
    op: str = "Relu",
    domain: str = "",
    columns: int = 4,
    batch: int | str = "batch",
    name: str = "one",
    read: str = "x",
) -> Model:
    """y = op(x), x [batch, columns]."""
    sizes = [batch, columns]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, sizes) for n in (read, "y"))
    graph = helper.make_graph([helper.make_node(op, [read], ["y"], domain=domain)], name, [x], [y])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return load(ir.serde.deserialize_model(proto))
