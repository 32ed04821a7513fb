"""An ONNX graph as a message for shape inference: without its weights and without known shapes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from normswap.graph.graph import Array

_LARGEST = 1000  # bytes of an initializer whose contents may matter to shapes


def outline(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The main graph with its inputs at ``shapes``, by name. Large initializers are inputs."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()
    )
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph)
    for value in model.graph.inputs:
        info = ir.serde.serialize_value(value)
        if value.name in shapes:
            _resize(info, shapes[str(value.name)])
        graph.input.append(info)
    inputs = {value.name for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value.name not in inputs:
            graph.input.append(_described(value))
        if tensor is not None and tensor.nbytes <= _LARGEST:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = str(value.name)
    outputs = set(model.graph.outputs)
    graph.output.extend(_without_shape(v) for v in model.graph.outputs)
    graph.value_info.extend(
        _without_shape(value)
        for node in model.graph
        for value in node.outputs
        if value.name and value.type is not None and value not in outputs
    )
    return proto


def fix(proto: onnx.ModelProto, constants: Mapping[str, Array]) -> None:
    """Makes constants of values that the graph computes, for all that reads them."""
    names = {name: f"{name}__fixed" for name in constants}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, names[name]) for name, array in constants.items()
    )
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(
            names[name], onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in constants.items()
    )


def _described(initializer: ir.Value) -> onnx.ValueInfoProto:
    tensor = initializer.const_value
    if tensor is None:
        return ir.serde.serialize_value(initializer)
    sizes = tensor.shape.numpy()
    return onnx.helper.make_tensor_value_info(str(initializer.name), int(tensor.dtype), sizes)


def _without_shape(value: ir.Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=str(value.name))
    if isinstance(value.type, ir.TensorType):
        info.type.tensor_type.elem_type = int(value.type.dtype)
    elif value.type is not None:
        info.type.CopyFrom(ir.serde.serialize_type(value.type))
    return info


def _resize(info: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = info.type.tensor_type.shape.dim
    del dims[:]
    dims.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape)
