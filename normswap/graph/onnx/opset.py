"""Raising the version of the operator set that an ONNX model is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx.version_converter
import onnx_ir as ir

from normswap.graph.onnx.annotations import read_annotations, restore_annotations
from normswap.graph.onnx.subgraphs import nested_operators

_CONVERTED_BY_ONNXSCRIPT = 18  # and later versions; earlier ones by onnx
Types = Mapping[str, tuple[tuple[int, ...] | None, Any]]


def raise_opset(model: ir.Model, version: int, types: Types) -> bool:
    """Writes the main graph in ``version``, in place; whether its nodes are others by then.

    ``types``: sizes and dtype of values by name. The model keeps its version where the converter
    fails.
    """
    if _means_the_same(model, version, types):
        model.opset_imports[""] = version
        return False
    from onnxscript.version_converter import convert_version  # files of today need none

    said = read_annotations(model.graph)
    convert_version(model, version, fallback=True)
    restore_annotations(model.graph, said)
    return True


def _means_the_same(model: ir.Model, version: int, types: Types) -> bool:
    """Whether onnx's converter, which takes one node after the other, would change none of them.

    It is asked about the nodes of operators that have changed since.
    """
    before = model.opset_imports.get("")
    if before is None or before >= _CONVERTED_BY_ONNXSCRIPT:
        return False
    changed = set()
    for op in {node.op_type for node in model.graph.all_nodes() if node.domain == ""}:
        try:
            old, new = (onnx.defs.get_schema(op, number) for number in (before, version))
        except onnx.defs.SchemaError:
            return False
        if old.since_version != new.since_version:
            changed.add(op)
    nodes = [n for n in model.graph.all_nodes() if n.domain == "" and n.op_type in changed]
    if any(node.graph is not model.graph or nested_operators(node) for node in nodes):
        return False
    asked = _by_themselves(nodes, before, types)
    try:
        answer = onnx.version_converter.convert_version(asked, version)
    except Exception:  # RuntimeError, ConvertError, TypeError: whatever it is, the whole decides
        return False
    pairs = zip(asked.graph.node, answer.graph.node, strict=False)
    same = all(_meaning(one) == _meaning(other) for one, other in pairs)
    return same and len(asked.graph.node) == len(answer.graph.node)


def _by_themselves(nodes: Sequence[ir.Node], version: int, types: Types) -> onnx.ModelProto:
    """The nodes as a model of their own, whose inputs and outputs are theirs."""
    proto = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    proto.opset_import.append(onnx.helper.make_opsetid("", version))
    graph = proto.graph
    graph.name = "nodes"
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    written = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v not in written)
    graph.input.extend(_described(value, types) for value in read)
    graph.output.extend(_described(v, types) for node in nodes for v in node.outputs if v.name)
    return proto


def _described(value: ir.Value, types: Types) -> onnx.ValueInfoProto:
    if value.const_value is not None:
        shape: Any = tuple(value.const_value.shape.numpy())
        kind = int(value.const_value.dtype)
    else:
        shape, dtype = types.get(str(value.name), (None, None))
        kind = 0 if dtype is None else int(ir.DataType.from_numpy(dtype))
    return onnx.helper.make_tensor_value_info(str(value.name), kind, shape)


def _meaning(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, node.domain, tuple(node.input), tuple(node.output), attributes
