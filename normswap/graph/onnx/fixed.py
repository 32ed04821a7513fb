"""Parameters that an ONNX graph computes although they are fixed.

A file with a dynamic batch may compute the ends of a Slice or the amounts of a Pad from sizes that
are no part of the batch. These can be nothing else, whatever the dynamic sizes are: they come from
shape inference over symbols, not from one run.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from normswap.graph.onnx.sizes import forget_shapes
from normswap.graph.operators import operator

_SHORT = 64
_ROUNDS = 12  # at most: sizes that are known now may make others known, stage by stage
_log = logging.getLogger(__name__)


def settle_fixed_parameters(model: ir.Model) -> None:
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
    """What onnxscript does not fold becomes a constant where it is fixed: a size that is picked
    from a Shape, and a short ConstantOfShape. How many did."""
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
    """What a Gather picks from the sizes of a value, if none of it is a symbol."""
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
    """A ConstantOfShape of few elements."""
    shape = None if node.inputs[0] is None else ir.convenience.get_const_tensor(node.inputs[0])
    value = node.attributes.get("value")
    if shape is None or np.prod(shape.numpy()) > _SHORT:
        return None
    fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    return np.full(shape.numpy(), fill.reshape(-1)[0], fill.dtype)
