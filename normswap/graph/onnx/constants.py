"""The constants of an ONNX graph, whether initializers or Constant nodes."""

from __future__ import annotations

import onnx_ir as ir


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that ``value`` always is; None if it is computed or fed."""
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "":
        return None
    held = node.attributes.get("value")
    if held is not None and held.type == ir.AttributeType.TENSOR and not held.is_ref():
        # As get_const_tensor does, whose check of the tensor's type is slow.
        tensor: ir.TensorProtocol = held.value
        tensor.name = value.name
        return tensor
    return ir.convenience.get_const_tensor(value)
