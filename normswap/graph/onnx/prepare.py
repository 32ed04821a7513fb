"""Brings an ONNX model into the form that the view reads.

Its functions are inlined, its nodes sorted, its values named, and parameters that it computes
although they are fixed become constants. A file with a dynamic batch may compute the ends of a
Slice or the amounts of a Pad from sizes that are no part of the batch. Their values come from
shape inference over symbols, not from one run: they hold whatever the dynamic sizes are.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, ShapeInferencePass

from normswap.errors import NormswapError, first_line, root_cause
from normswap.graph.onnx.check import check_functions, check_structure
from normswap.graph.onnx.evaluate import slice_parts
from normswap.graph.onnx.nodes import DOMAINS, constant_tensor, subgraphs
from normswap.graph.operators import operator

_SHORT = 64
_ROUNDS = 12  # at most: sizes that are known now may make others known, stage by stage
_log = logging.getLogger(__name__)


def prepare(model: ir.Model, settle: bool = True) -> None:
    """Prepares the model for the view, in place.

    ``settle``: whether fixed parameters become constants, which takes the longest. Raises
    NormswapError where a function cannot be inlined, the graph is not built as the standard says or
    has a cycle.
    """
    if model.functions:
        check_functions(model)
        try:
            InlinePass()(model)
        except Exception as error:  # a damaged body may lead to any
            reason = first_line(root_cause(error))
            raise NormswapError(f"its functions cannot be inlined ({reason})") from error
    check_structure(model)
    try:
        model.graph.sort()
    except ValueError as error:
        raise NormswapError(f"its graph has a cycle ({first_line(error)})") from error
    _remove_dead_nodes(model.graph)
    _drop_negative_sizes(model.graph)
    _name_values(model.graph)
    if settle:
        _settle_fixed_parameters(model)
    _hold_constants(model.graph)


def forget_shapes(model: ir.Model) -> list[ir.Value]:
    """Drops the recorded shapes of all computed values, so that they are inferred again for other
    sizes of the inputs; returns those values."""
    results = [value for node in model.graph for value in node.outputs]
    for value in results:
        value.shape = None
    return results


def _remove_dead_nodes(graph: ir.Graph) -> None:
    """Removes the nodes that no output needs, which exporters leave: a pass can prove nothing of
    them, and they would stand in its way."""
    nodes, constants = slice_parts(graph.inputs, graph.outputs)
    alive = {*nodes, *(value.producer() for value in constants)}
    dead = [node for node in graph if node not in alive]
    for node in dead:
        inner = (other for body in subgraphs(node) for other in body.all_nodes())
        for reader in [node, *inner]:
            for index in range(len(reader.inputs)):
                reader.replace_input_with(index, None)
    graph.remove(dead)


def _drop_negative_sizes(graph: ir.Graph) -> None:
    """Makes sizes below zero unknown: some exporters write -1 for a dynamic one, and ONNX Runtime
    reads it so."""
    for value in [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]:
        if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
            known = (None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape)
            value.shape = ir.Shape(known)


def _name_values(graph: ir.Graph) -> None:
    """Names the values that are read but have no name, since the view knows values by name."""
    taken = {v.name for n in graph for v in n.outputs} | {v.name for v in graph.inputs}
    count = 0
    for node in graph:
        for value in node.outputs:
            if not value.name and (value.uses() or value is node.outputs[0]):
                while f"value_{count}" in taken:
                    count += 1
                value.name = f"value_{count}"
                taken.add(value.name)


def _hold_constants(graph: ir.Graph) -> None:
    """Records the tensor of each Constant node at its output, as initializers have it."""
    for node in graph:
        if node.op_type == "Constant" and node.domain in DOMAINS:
            output = node.outputs[0]
            tensor = constant_tensor(output)
            if tensor is not None:
                output.const_value, output.dtype = tensor, tensor.dtype


def _settle_fixed_parameters(model: ir.Model) -> None:
    """Makes constants of the parameters of Slice, Pad and Split that are fixed, in place."""
    wanted = {
        str(value.name): value
        for node in model.graph
        if operator(node.op_type).bounds_from_sizes
        for value in node.inputs[1:]
        if value is not None and _is_computed(value)
    }
    if not wanted:
        return
    for name, tensor in _folded(model, set(wanted)).items():
        value = wanted[name]
        constant = ir.Value(name=f"{name}_fixed", const_value=tensor)
        constant.shape, constant.dtype = ir.Shape(tensor.numpy().shape), tensor.dtype
        tensor.name = constant.name
        model.graph.initializers.add(constant)
        for node, index in list(value.uses()):
            if operator(node.op_type).bounds_from_sizes and node.graph is model.graph:
                node.replace_input_with(index, constant)
    RemoveUnusedNodesPass()(model)


def _is_computed(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type != "Constant" and value.const_value is None


def _folded(model: ir.Model, wanted: set[str]) -> dict[str, ir.TensorProtocol]:
    from onnxscript.optimizer import fold_constants  # many files have nothing to settle

    behind = ir.convenience.extract(model.graph, model.graph.inputs, sorted(wanted))
    sized = ir.Model(behind, ir_version=model.ir_version)
    forget_shapes(sized)
    found: dict[str, ir.TensorProtocol] = {}
    try:
        for _ in range(_ROUNDS):
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(sized)
            settled = _settle_sizes(sized)
            fold_constants(sized, onnx_shape_inference=False)
            found |= _constants(sized, wanted)
            if not settled or len(found) == len(wanted):
                break
    except Exception as error:  # best effort: what it cannot give stays computed
        _log.debug("folding sizes failed: %s", error)
    return found


def _constants(model: ir.Model, wanted: set[str]) -> dict[str, ir.TensorProtocol]:
    values = [*model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    tensors = {str(v.name): ir.convenience.get_const_tensor(v) for v in values if v.name in wanted}
    return {name: ir.Tensor(t.numpy()) for name, t in tensors.items() if t is not None}


def _settle_sizes(model: ir.Model) -> int:
    """Makes constants of fixed values that onnxscript does not fold: sizes that are picked from a
    Shape, and short ConstantOfShapes; returns how many."""
    settled = 0
    for node in list(model.graph):
        output = node.outputs[0]
        sizes = _fixed_sizes(node)
        if sizes is not None and output.uses():
            tensor = ir.Tensor(sizes, name=f"{output.name}_size")
            constant = ir.node("Constant", [], {"value": tensor})
            constant.outputs[0].name = tensor.name
            constant.outputs[0].const_value = tensor
            model.graph.insert_before(node, constant)
            ir.convenience.replace_all_uses_with(output, constant.outputs[0])
            settled += 1
    return settled


def _fixed_sizes(node: ir.Node) -> np.ndarray | None:
    """What a node yields where that is fixed; None for one that is not made a constant."""
    if node.op_type == "Gather":
        return _picked(node)
    return _filled(node) if node.op_type == "ConstantOfShape" else None


def _picked(node: ir.Node) -> np.ndarray | None:
    """The sizes that a Gather picks from a Shape, unless one is a symbol."""
    sizes, index = node.inputs
    shape = None if sizes is None else sizes.producer()
    if shape is None or shape.op_type != "Shape" or shape.attributes or index is None:
        return None
    source, positions = shape.inputs[0], ir.convenience.get_const_tensor(index)
    if source is None or source.shape is None or positions is None:
        return None
    dims = [source.shape[int(i)] for i in positions.numpy().reshape(-1)]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    return np.array(dims, np.int64).reshape(positions.shape.numpy())


def _filled(node: ir.Node) -> np.ndarray | None:
    """The array of a ConstantOfShape with few elements."""
    shape = None if node.inputs[0] is None else ir.convenience.get_const_tensor(node.inputs[0])
    value = node.attributes.get("value")
    if shape is None or np.prod(shape.numpy()) > _SHORT:
        return None
    fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    return np.full(shape.numpy(), fill.reshape(-1)[0], fill.dtype)
