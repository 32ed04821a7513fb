"""Sizes and dtypes of an ONNX graph's values.

``infer`` works in stages:

1. The dynamic dimensions of the inputs get sizes that the graph accepts (``example_shapes``).
2. ONNX's shape inference finds what follows from them.
3. Sizes that the graph computes from shapes, and reshapes or expands with, are computed too, and
   inference goes on with them.
4. What is still unknown comes node by node, from inference or a run of single nodes.

No size in a file is believed: nothing here takes more than the bounds of ``single_nodes`` say, and
what is not found within them stays unknown.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from normswap.errors import quiet
from normswap.graph.graph import Array
from normswap.graph.onnx import single_nodes
from normswap.graph.onnx.nodes import captured_values, constant_tensor, constant_values
from normswap.graph.onnx.prepare import forget_shapes
from normswap.graph.onnx.single_nodes import SMALL, Shape, SingleNodes, Type, numpy_dtype
from normswap.graph.operators import operator

BATCH = 2  # the size of a dynamic first axis
_IMAGE_RANK = 4
_IMAGES = (224, 384, 336, 256, 518, 448, 512, 128, 64, 32, 16, 8)
_IMAGES_AGAIN = (64, 32, 128)  # where shapes stay unknown at the first size: text recognisers
_TEXTS = (16, 77, 64, 32, 128, 12, 8, 256, 512)
_MANY_AXES, _SMALL_SIDES = 6, (4, 2)  # the rank from which on sizes are small, and these
_TRIED = 200_000  # nodes in all whose shapes are inferred for different sizes
_TRIED_AGAIN = 10_000  # the same with all that is done to make them known
_CONTENTS = 1000  # bytes of an initializer whose contents may matter to shapes
INITIALIZERS_ALONE = 4  # the IR version from which on they need not be inputs as well
_log = logging.getLogger(__name__)

Types = Mapping[str, Type]
"""By the names of the values."""
_Symbol = tuple[str, int] | str  # of a dimension: its name, or input and axis where it has none


def infer(model: ir.Model, known: Types | None = None) -> dict[str, Type]:
    """Sizes and dtypes of inputs and computed values, at the inputs' ``example_shapes``.

    ``model`` is as ``prepare`` leaves it. ``known`` is taken as it is.
    """
    best: dict[str, Type] = {}
    fewest = None
    for shapes in example_shapes(model):
        types = _infer_at(shapes, model, known or {})
        unknown = sum(shape is None for shape, _ in types.values())
        if fewest is None or unknown < fewest:
            best, fewest = types, unknown
        if not unknown:
            break
    return best


def _infer_at(shapes: Mapping[str, Shape], model: ir.Model, known: Types) -> dict[str, Type]:
    """The same at ``shapes`` of the inputs."""
    graph = model.graph
    proto = outline(model, shapes)
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    types = {**_inferred(proto, values), **known}
    nodes = SingleNodes(model)
    sizes = _Sizes(graph, nodes)
    # Shapes that are known now may make others known, so this takes several rounds.
    while computed := sizes.computed({name: shape for name, (shape, _) in types.items()}):
        _fix(proto, computed)
        types |= _inferred(proto, [v for v in values if types[str(v.name)][0] is None])
    return types | _node_by_node(graph, types, sizes, nodes)


# -- sizes for the inputs' dynamic dimensions -----------------------------------------------------


def example_shapes(model: ir.Model) -> Iterator[dict[str, Shape]]:
    """The shape of each input that has one, by name, with sizes for the dynamic dimensions; then
    others, for where these leave shapes unknown.

    A batch may be anything. An image whose height and width are symbols has to fit the position
    embedding, so sizes are tried until shape inference finds no contradiction. What it does not
    find shows later: the graph takes no image of that size.
    """
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    shaped = {str(v.name): v.shape for v in inputs if v.shape is not None}
    symbols = {name: [_symbol(name, a, d) for a, d in enumerate(s)] for name, s in shaped.items()}
    choices = _choices(model, symbols)
    assignments = _assignments(choices)
    first = next(assignments)
    chosen = first
    if len(choices) > sum(len(values) == 1 for values in choices.values()):
        count = max(4, _TRIED // max(1, len(model.graph)))
        for assignment in itertools.islice(itertools.chain([first], assignments), count):
            if _fits(model, _filled(symbols, assignment)):
                chosen = assignment
                break
        else:
            _log.debug("no sizes were found that fit all symbolic dimensions")
    yield _filled(symbols, chosen)
    images = [symbol for symbol, values in choices.items() if values == _IMAGES]
    for side in _IMAGES_AGAIN[: _TRIED_AGAIN // max(1, len(model.graph))] if images else ():
        again = _filled(symbols, {**chosen, **dict.fromkeys(images, side)})
        if _fits(model, again):
            yield again


def _symbol(name: str, axis: int, dim: int | ir.SymbolicDim) -> _Symbol | int:
    if isinstance(dim, int):
        return dim
    return str(dim.value) if dim.value is not None else (name, axis)


def _choices(model: ir.Model, symbols: dict[str, list[_Symbol | int]]) -> dict[_Symbol, Shape]:
    """What to try for each symbol: one size for a batch or the channels, several for the rest."""
    choices: dict[_Symbol, Shape] = {}
    for name, dims in symbols.items():
        image = len(dims) == _IMAGE_RANK
        for axis, symbol in enumerate(dims):
            if isinstance(symbol, int):
                continue
            many = _SMALL_SIDES if len(dims) >= _MANY_AXES else _TEXTS
            sizes = (BATCH,) if axis == 0 else _IMAGES if image else many
            if image and axis == 1:
                sizes = (_channels(model, name),)
            if symbol not in choices or len(sizes) == 1:
                choices[symbol] = sizes
    return choices


def _channels(model: ir.Model, name: str) -> int:
    """The input channels of the first convolution of an image."""
    value = next(v for v in model.graph.inputs if v.name == name)
    pending, seen = [value], set[ir.Value]()
    while pending:
        value = pending.pop(0)
        for node, index in value.uses():
            if node.op_type == "Conv" and index == 0 and len(node.inputs) > 1:
                weight = node.inputs[1]
                if weight is not None and weight.shape is not None and weight.shape.is_static():
                    group = node.attributes.get("group")
                    return int(weight.shape.numpy()[1]) * (group.as_int() if group else 1)
            rescales = operator(node.op_type).combines_two or node.op_type == "Cast"
            if value not in seen and rescales:
                pending.extend(node.outputs)
        seen.add(value)
    return 3


def _assignments(choices: dict[_Symbol, Shape]) -> Iterator[dict[_Symbol, int]]:
    """One size per symbol: symbols with the same choices (height and width) take the same."""
    groups = list(dict.fromkeys(choices.values()))
    for sizes in itertools.product(*groups):
        size_of = dict(zip(groups, sizes, strict=True))
        yield {symbol: size_of[options] for symbol, options in choices.items()}


def _filled(symbols: dict[str, list[_Symbol | int]], sizes: dict[_Symbol, int]) -> dict[str, Shape]:
    return {
        name: tuple(d if isinstance(d, int) else sizes[d] for d in dims)
        for name, dims in symbols.items()
    }


def _fits(model: ir.Model, shapes: dict[str, Shape]) -> bool:
    """Whether shape inference finds nothing wrong, and no empty value."""
    sized = model.clone()
    for value in sized.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    results = forget_shapes(sized)
    with quiet(ShapeInferencePass.__module__):  # it logs what is wrong, and leaves the model as is
        ShapeInferencePass(check_type=False, strict_mode=True, data_prop=True)(sized)
    known = [value.shape for value in results if value.shape is not None]
    return bool(known) and not any(isinstance(d, int) and d <= 0 for s in known for d in s)


# -- ONNX's shape inference -----------------------------------------------------------------------


def outline(model: ir.Model, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """The main graph without its recorded shapes and its weights, its inputs at ``shapes``.

    Large initializers become inputs.
    """
    proto = onnx.ModelProto(ir_version=max(model.ir_version, INITIALIZERS_ALONE))
    proto.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()
    )
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph)
    for value in model.graph.inputs:
        info = ir.serde.serialize_value(value)
        if value.name in shapes:
            dims = info.type.tensor_type.shape.dim
            del dims[:]
            sizes = shapes[str(value.name)]
            dims.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in sizes)
        graph.input.append(info)
    inputs = {value.name for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= _CONTENTS:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = str(value.name)
        elif value.name not in inputs:
            info = ir.serde.serialize_value(value) if tensor is None else described(value)
            graph.input.append(info)
    outputs = set(model.graph.outputs)
    graph.output.extend(_without_shape(v) for v in model.graph.outputs)
    graph.value_info.extend(
        _without_shape(value)
        for node in model.graph
        for value in node.outputs
        if value.name and value.type is not None and value not in outputs
    )
    return proto


def described(value: ir.Value, types: Types | None = None) -> onnx.ValueInfoProto:
    """What a message says of a constant, or of a value by its ``types``."""
    tensor = value.const_value
    if tensor is not None:
        return onnx.helper.make_tensor_value_info(
            value.name, int(tensor.dtype), tensor.shape.numpy()
        )
    return single_nodes.described(str(value.name), (types or {}).get(str(value.name), (None, None)))


def _without_shape(value: ir.Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=str(value.name))
    if isinstance(value.type, ir.TensorType):
        info.type.tensor_type.elem_type = int(value.type.dtype)
    elif value.type is not None:
        info.type.CopyFrom(ir.serde.serialize_type(value.type))
    return info


def _fix(proto: onnx.ModelProto, constants: Mapping[str, Array]) -> None:
    """Makes constants of values that the graph computes, for all their readers."""
    names = {name: f"{name}__fixed" for name in constants}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, names[name]) for name, array in constants.items()
    )


def _inferred(proto: onnx.ModelProto, values: Iterable[ir.Value]) -> dict[str, Type]:
    try:
        # Without data_prop: _Sizes does more, in less time and memory.
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception as error:  # inference is best effort: what it cannot give stays unknown
        _log.debug("shape inference failed: %s", error)
        graph = proto.graph
    # An input may be an output as well; then the input says more.
    infos = {info.name: info for info in (*graph.output, *graph.value_info, *graph.input)}
    return {str(v.name): _type(v, infos.get(str(v.name))) for v in values}


def _type(value: ir.Value, info: onnx.ValueInfoProto | None) -> Type:
    """What was inferred of ``value``, else the dtype that the model records."""
    shape, dtype = single_nodes.type_of(info)
    if dtype is None and value.dtype is not None:
        dtype = numpy_dtype(int(value.dtype))
    return shape, dtype


# -- what the graph computes from shapes ----------------------------------------------------------


class _Sizes:
    """What a graph, with its nodes in topological order, computes from small constants and known
    shapes."""

    def __init__(self, graph: ir.Graph, nodes: SingleNodes) -> None:
        self._graph, self._nodes = graph, nodes
        self._arrays: dict[ir.Value, Array] = {}
        self._returned: set[ir.Value] = set()

    def computed(self, shapes: Mapping[str, Shape | None]) -> dict[str, Array]:
        """The integers that nodes of unknown shape read, by the names of the values; each value is
        returned once."""
        unknown = [n for n in self._graph if any(shapes[str(v.name)] is None for v in n.outputs)]
        wanted = {v for n in unknown for v in n.inputs if v is not None and _is_computed(v)}
        wanted -= self._returned
        needed = self._behind(wanted)
        for node in self._graph if needed else ():
            if node in needed:
                self.compute(node, shapes)
        known = [v for v in wanted if v in self._arrays and self._arrays[v].dtype.kind in "iu"]
        self._returned.update(known)
        return {str(value.name): self._arrays[value] for value in known}

    def _behind(self, values: Iterable[ir.Value]) -> set[ir.Node]:
        """The nodes that compute ``values``, as far as those are not known yet."""
        nodes: set[ir.Node] = set()
        pending = list(values)
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or node in nodes or value in self._arrays or not _is_computed(value):
                continue
            nodes.add(node)
            if node.op_type != "Shape":
                pending.extend(v for v in node.inputs if v is not None)
        return nodes

    def compute(self, node: ir.Node, shapes: Mapping[str, Shape | None]) -> None:
        """Finds those outputs of a node that are known and small."""
        if node.op_type == "Shape":
            sizes = _shape_result(node, shapes)
            found = {} if sizes is None else {str(node.outputs[0].name): sizes}
        elif node.inputs and all(v is None or self._known(v) is not None for v in node.inputs):
            found = self._nodes.computed(node, self.read_by(node))
        else:
            found = {}
        self._arrays.update({v: found[str(v.name)] for v in node.outputs if str(v.name) in found})

    def read_by(self, node: ir.Node) -> dict[str, Array]:
        """Those contents of what a node or its bodies read that are known, by name."""
        reads = [value for value in (*node.inputs, *captured_values(node)) if value is not None]
        known = {str(value.name): self._known(value) for value in reads}
        return {name: array for name, array in known.items() if array is not None}

    def _known(self, value: ir.Value) -> Array | None:
        if value in self._arrays:
            return self._arrays[value]
        tensor = constant_tensor(value)
        return tensor.numpy() if tensor is not None and tensor.size <= SMALL else None


def _is_computed(value: ir.Value) -> bool:
    return value.producer() is not None and constant_tensor(value) is None


def _shape_result(node: ir.Node, shapes: Mapping[str, Shape | None]) -> Array | None:
    """What a Shape node yields, if the shape is known."""
    source = node.inputs[0]
    shape = shapes.get(str(source.name)) if source is not None else None
    if shape is None:
        return None
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    span = slice(start.as_int() if start else None, end.as_int() if end else None)
    return np.array(shape[span], np.int64)


# -- node by node for the rest --------------------------------------------------------------------


def _node_by_node(
    graph: ir.Graph, types: Mapping[str, Type], sizes: _Sizes, nodes: SingleNodes
) -> dict[str, Type]:
    """The types that are still unknown, as far as what each node reads is known."""
    if all(None not in types[str(v.name)] for node in graph for v in node.outputs if v.name):
        return {}
    held = graph.initializers.values()
    all_types: dict[str, Type] = {str(v.name): _type_of_constant(v) for v in held}
    all_types |= types
    constants = constant_values(graph)
    shapes = {name: shape for name, (shape, _) in all_types.items()}
    found: dict[str, Type] = {}
    for node in graph:
        sizes.compute(node, shapes)
        unknown = {str(v.name) for v in node.outputs if v.name and None in all_types[str(v.name)]}
        fixed = node.outputs[0] in constants  # what it is does not follow from zeros
        for how in (nodes.inferred,) if fixed else (nodes.inferred, nodes.run):
            if unknown:
                results = how(node, all_types, sizes.read_by(node))
                known = {n: t for n, t in results.items() if n in unknown and None not in t}
                found |= known
                all_types |= known
                shapes |= {name: shape for name, (shape, _) in known.items()}
                unknown -= known.keys()
    return found


def _type_of_constant(value: ir.Value) -> Type:
    tensor = value.const_value
    if tensor is None:
        return None, None
    return tuple(tensor.shape.numpy()), numpy_dtype(int(tensor.dtype))
