"""Raising the version of the operator set that an ONNX model is written in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx.version_converter
import onnx_ir as ir

from normswap.graph.onnx.nodes import DOMAINS, nested_operators
from normswap.graph.onnx.shapes import Types, described

_CONVERTED_BY_ONNXSCRIPT = 18  # and later versions; earlier ones by onnx


def opset_of(model: ir.Model) -> int:
    """The version of the default operator set that the model is written in."""
    return next((v for d, v in model.opset_imports.items() if d in DOMAINS), 1)


def raise_opset(model: ir.Model, version: int, types: Types) -> bool:
    """Writes the main graph in ``version``, in place; returns whether nodes may have changed.

    ``types``: sizes and dtypes of values by name. Values keep their names, types and recorded
    shapes. The model keeps its version where the converter fails.
    """
    if _means_the_same(model, version, types):
        model.opset_imports[""] = version
        return False
    _convert(model, version)
    return True


def _convert(model: ir.Model, version: int) -> None:
    from onnxscript.version_converter import convert_version  # files of today need none

    recorded = {str(value.name): (value.type, value.shape) for value in _annotated(model.graph)}
    convert_version(model, version, fallback=True)
    # The converter adds shapes, which a reader of the file would act on: where ONNX Runtime knows
    # them, it fuses an Add and a LayerNormalization into its slower and less accurate
    # SkipLayerNormalization.
    for value in _annotated(model.graph):
        value.type, value.shape = recorded.get(str(value.name), (None, None))


def _annotated(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values whose type and shape a file may record or leave out: all but the graph's inputs
    and outputs."""
    interface = {*graph.inputs, *graph.outputs}
    yield from (v for v in graph.initializers.values() if v not in interface)
    for node in graph.all_nodes():
        yield from (v for v in node.outputs if v not in interface)


def _means_the_same(model: ir.Model, version: int, types: Types) -> bool:
    """Whether onnx's converter would change no node.

    It converts one node after the other, so it is asked only about those whose operators are
    defined anew in ``version`` or between.
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
    except Exception:  # RuntimeError, ConvertError, TypeError: then the whole graph is converted
        return False
    pairs = zip(asked.graph.node, answer.graph.node, strict=False)
    same = all(_meaning(one) == _meaning(other) for one, other in pairs)
    return same and len(asked.graph.node) == len(answer.graph.node)


def _by_themselves(nodes: Sequence[ir.Node], version: int, types: Types) -> onnx.ModelProto:
    """A model of these nodes alone; its inputs and outputs are what they read and yield."""
    proto = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    proto.opset_import.append(onnx.helper.make_opsetid("", version))
    graph = proto.graph
    graph.name = "nodes"
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    written = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v not in written)
    graph.input.extend(described(value, types) for value in read)
    graph.output.extend(described(v, types) for node in nodes for v in node.outputs if v.name)
    return proto


def _meaning(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, node.domain, tuple(node.input), tuple(node.output), attributes
