"""The adapter for ONNX graphs, through ``onnx_ir``: the view and its edits.

``read_graph`` reads a model in steps, each of which is a function: ``prepare`` brings the model
into a form that can be read, ``infer`` finds the sizes and dtypes of its values, ``view`` builds
the ``Value`` and ``Node`` objects::

    graph = read_graph(onnx_ir.load("clip.onnx"))
    print(graph.nodes[0].op, graph.nodes[0].output.shape)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Node, Runner, Value
from normswap.graph.onnx import emit
from normswap.graph.onnx import ops as onnx_ops
from normswap.graph.onnx.check import is_declared
from normswap.graph.onnx.evaluate import (
    double_runner,
    reference_runner,
    runtime_runner,
    slice_proto,
)
from normswap.graph.onnx.half import convert, why_not_half
from normswap.graph.onnx.loading import refusal
from normswap.graph.onnx.nodes import (
    DOMAINS,
    captured_values,
    constant_values,
    module_scope,
    nested_operators,
    replace_captured,
)
from normswap.graph.onnx.opset import opset_of, raise_opset
from normswap.graph.onnx.opset_rules import meaning_of
from normswap.graph.onnx.prepare import prepare
from normswap.graph.onnx.segments import Input
from normswap.graph.onnx.shapes import INITIALIZERS_ALONE, Types, infer
from normswap.graph.operators import operator
from normswap.graph.rounding import is_half
from normswap.graph.simulation import Simulation

_LARGEST_CONSTANT = 1 << 26  # elements of one that nodes compute
_SHORT = 64  # bytes, or items, of an attribute that is compared


def read_graph(model: ir.Model) -> OnnxGraph:
    """The graph of a model, which it owns from then on: edits change the model.

    Raises NormswapError where the model's functions cannot be inlined or its graph has a cycle.
    """
    prepare(model)
    return view(model, infer(model))


def view(model: ir.Model, types: Types) -> OnnxGraph:
    """The graph of a model that ``prepare`` has prepared, whose values have these ``types``."""
    graph = OnnxGraph(model)
    graph.update(types)
    return graph


class OnnxGraph(Graph):
    """The view of an ``onnx_ir.Model``'s main graph; made by ``read_graph``."""

    kind = "onnx"

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.model = model
        self._wanted_names: dict[str, str] = {}  # by the unique name given in its place
        self._unit_scales: dict[Any, str] = {}  # the names of vectors of ones

    # -- building the view -----------------------------------------------------------------------

    def update(self, types: Types) -> None:
        """Reads the model's main graph, whose values have these ``types``.

        A value whose name the view has already stays the same object, and so does a node that has
        not changed.
        """
        values, nodes = self._values, {node.output.name: node for node in self.nodes}
        for value in [*values.values(), *(v for node in self.nodes for v in node.outputs)]:
            value.producer, value.uses = None, []
        self._values, self._folded, self.nodes = {}, {}, []
        graph, constants = self.model.graph, _held_constants(self.model.graph, types)
        fed = [raw for raw in graph.inputs if raw.name not in graph.initializers]
        computed = [raw for node in graph for raw in node.outputs if raw.name]
        for raw in [*fed, *graph.initializers.values(), *computed]:
            name = str(raw.name)
            value = self._values[name] = values.get(name) or Value(name, raw)
            value.raw, value.is_constant = raw, raw in constants
            value.shape, value.dtype = types.get(name, (None, None))
            if raw.const_value is not None:
                value.shape = tuple(raw.const_value.shape.numpy())
                value.dtype = raw.const_value.dtype.numpy()
        self.inputs = [self._values[str(raw.name)] for raw in fed]
        self.outputs = [self._values[str(raw.name)] for raw in graph.outputs]
        for node in graph:
            if node.outputs[0].const_value is None:  # else a Constant, which is no node here
                self.nodes.append(self._view(node, nodes.get(str(node.outputs[0].name))))

    def _view(self, raw: ir.Node, old: Node | None) -> Node:
        """The node of ``raw``: ``old`` itself if nothing about it has changed."""
        op = raw.op_type if raw.domain in DOMAINS else f"{raw.domain}.{raw.op_type}"
        names = [str(v.name or f"{raw.outputs[0].name}.{i}") for i, v in enumerate(raw.outputs)]
        read = [self._values[str(v.name)] if v is not None else None for v in raw.inputs]
        data, attributes = self._parameters(op, raw, read)
        inputs = [*read[:data], *(self._values[str(v.name)] for v in captured_values(raw))]
        scope, nested = module_scope(raw), nested_operators(raw)
        if old is not None and (op, inputs, attributes, names, scope, nested) == _reading(old):
            old.raw = raw
            for value, output in zip(old.outputs, raw.outputs, strict=True):
                value.raw = output
            old.connect()
            return old
        outputs = [
            self._values[name] if output.name else Value(name, output)  # optional and omitted
            for name, output in zip(names, raw.outputs, strict=True)
        ]
        return Node(op, inputs, attributes, outputs, raw, scope, nested)

    def _parameters(
        self, op: str, raw: ir.Node, read: Sequence[Value | None]
    ) -> tuple[int, dict[str, Any]]:
        """How many inputs of a node are data, and its attributes, the other inputs included."""

        def is_constant(index: int) -> bool:
            value = read[index]
            return value is None or (value.is_constant and self._is_known(value))

        def constant(index: int) -> Array | None:
            value = read[index] if index < len(read) else None
            return None if value is None else self.constant(value)

        data = onnx_ops.data_inputs(op, len(read), is_constant)
        own = {n: _attribute(a) for n, a in raw.attributes.items() if is_declared(raw, n)}
        known = [*read[:1], self._values[str(raw.outputs[0].name)]]
        ranks = [value.rank if value is not None else None for value in known]
        attributes = onnx_ops.attributes(op, own, ranks, constant, data)
        if "training_mode" in attributes and operator(op).norm:
            attributes["training_mode"] = onnx_ops.trains(own, self.opset, len(raw.outputs))
        if op == "GatherND":
            indices = read[1]
            depth = indices.shape[-1] if indices is not None and indices.shape else None
            attributes["depth"] = None if depth is None else depth + attributes.get("batch_dims", 0)
        return data, attributes

    # -- reading and evaluating ------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return opset_of(self.model)

    def slice(self, inputs: Sequence[Value], outputs: Sequence[Value], dtype: Any = None) -> Runner:
        if is_half(dtype):
            return Simulation(self, inputs, outputs, dtype)
        wanted = [v.raw for v in outputs]
        if dtype is not None:
            given = [v.raw for v in inputs]
            return double_runner(self.model, given, wanted, self._dtype_of, self.not_in_double)
        # The sizes of a list of sizes and of a scalar are fixed, others may be any.
        typed: list[Input] = [(v.raw, v.dtype, v.shape if _is_sized(v) else None) for v in inputs]
        return runtime_runner(self.model, typed, wanted)

    def _dtype_of(self, name: str) -> np.dtype[Any] | None:
        value = self._values.get(name)
        return None if value is None else value.dtype

    def signature(self, node: Node) -> Hashable | None:
        raw = cast(ir.Node, node.raw)
        written = tuple(bool(value.name) for value in raw.outputs)
        attributes = []
        for attribute in raw.attributes.values():
            found = _in_short(attribute)
            if found is None:
                return None
            attributes.append((attribute.name, found))
        # Inputs that are attributes in the view, by what they hold.
        rest: list[Hashable] = []
        for read in raw.inputs[len(node.inputs) :]:
            if read is None:
                rest.append(None)
                continue
            value, stored = self._values.get(str(read.name)), read.const_value
            array = None if stored is None or stored.nbytes > _SHORT else stored.numpy()
            if stored is None and value is not None and value.is_constant:
                array = self.plain_constant(value)
            if array is None or array.nbytes > _SHORT:
                return None
            rest.append((str(array.dtype), array.tobytes()))
        meaning = meaning_of(node.op, self.opset)
        return raw.domain, raw.op_type, meaning, tuple(sorted(attributes)), written, tuple(rest)

    def is_bare(self, node: Node) -> bool:
        raw = cast(ir.Node, node.raw)
        return not raw.attributes and len(raw.inputs) <= len(node.inputs)

    def extract(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.ModelProto:
        """A slice as a model of its own, whose outputs are in the order of ``outputs``.

        Raises ValueError if the slice needs an input that is not among ``inputs``.
        """
        typed: list[Input] = [(v.raw, v.dtype, v.shape) for v in inputs]
        return slice_proto(self.model, typed, [v.raw for v in outputs])[0]

    def copy(self) -> OnnxGraph:
        duplicate = view(self.model.clone(), self._types())
        self._carried_to(duplicate)
        return duplicate

    def as_attribute(self, number: float) -> float:
        return float(np.float32(number))

    def why_not_half(self, node: Node, dtype: np.dtype[Any]) -> str:
        half = ir.DataType.from_numpy(dtype)
        return why_not_half(cast(ir.Node, node.raw), self.model.opset_imports, half)

    def in_half(self, dtype: np.dtype[Any], wide: Collection[Node], keep_io: bool) -> OnnxGraph:
        duplicate = self.copy()
        raw = [duplicate.value(node.output.name).producer for node in wide]
        values = [*duplicate.values(), *(v for node in duplicate.nodes for v in node.outputs)]
        kept = [cast(ir.Node, node.raw) for node in raw if node is not None]
        types = convert(duplicate.model, values, kept, dtype, keep_io)
        RemoveUnusedNodesPass()(duplicate.model)
        return view(duplicate.model, types)

    def settle_weights(self) -> list[str]:
        """In files before IR version 4 every initializer has to be an input, and none can be
        overridden: they get that version, for new initializers are no inputs."""
        graph, before = self.model.graph, self.model.ir_version
        settled = [value for value in graph.inputs if value.name in graph.initializers]
        for value in settled:
            graph.inputs.remove(value)
        if before < INITIALIZERS_ALONE:
            self.model.ir_version = INITIALIZERS_ALONE
        if settled:
            self.version += 1
            self.prune()
        return [str(v.name) for v in settled] if before >= INITIALIZERS_ALONE else []

    @property
    def has_fixed_sizes(self) -> bool:
        shapes = [cast(ir.Value, value.raw).shape for value in self.inputs]
        return all(shape is not None and shape.is_static() for shape in shapes)

    def load_refusal(self) -> str:
        return refusal(self.model)

    def _types(self) -> Types:
        return {v.name: (v.shape, v.dtype) for v in self._values.values()}

    def _read(self, value: Value) -> Array:
        tensor = cast(ir.Value, value.raw).const_value
        assert tensor is not None
        return tensor.numpy()

    def _is_known(self, value: Value) -> bool:
        """Whether a constant can be computed; an operator may be one that nothing here knows."""
        try:
            return self.constant(value) is not None
        except NormswapError:
            return False

    def _compute_constant(self, value: Value) -> Array:
        return reference_runner(self.model, [], [value.raw])([])[0]

    # -- raising the opset -----------------------------------------------------------------------

    def require(self, op: str) -> None:
        before, wanted = self.opset, operator(op).opset
        if before >= wanted or self._is_at_home(op):
            return
        try:
            has_changed = raise_opset(self.model, wanted, self._types())
        except NormswapError as error:
            raise NormswapError(
                f"{op} needs opset {wanted}, and {error}; export the model again with a newer opset"
            ) from error
        if not has_changed:
            return
        # Names stay, and values of the same names have the same types.
        types = {v.name: (v.shape, v.dtype) for v in self.values() if v.shape is not None}
        computed = {v.name for node in self.model.graph for v in node.outputs if v.name}
        is_known = computed <= types.keys()
        prepare(self.model, settle=not is_known)
        self.update(types if is_known else infer(self.model, types))

    def _is_at_home(self, op: str) -> bool:
        """Whether the graph has such a norm although its opset does not: ONNX Runtime writes its
        own into ONNX's domain when it optimises a file, and is what runs it from then on."""
        return bool(operator(op).norm) and any(
            node.op_type == op and not node.domain for node in self.model.graph
        )

    # -- editing ---------------------------------------------------------------------------------

    def replace_constant(self, value: Value, array: Array) -> None:
        raw = cast(ir.Value, value.raw)
        if raw.producer() is not None:  # a Constant node: its attribute is the tensor
            tensor = ir.tensor(array, name=raw.name)
            attributes = raw.producer().attributes  # type: ignore[union-attr]
            attributes.clear()  # it may have been a value_float or the like
            attributes["value"] = ir.AttrTensor("value", tensor)
            raw.const_value = tensor
        else:
            raw.const_value = ir.tensor(array, name=raw.name)
        raw.shape = ir.Shape(array.shape)
        self._replaced(value, array)

    def insert(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
        like: Node | None = None,
    ) -> Value:
        if operator(op).norm and len(inputs) > 1 and inputs[1] is None:
            x = cast(Value, inputs[0])
            inputs = [x, self._unit_scale(x, attributes or {}, name), *inputs[2:]]
        return super().insert(op, inputs, attributes, name=name, like=like)

    def _unit_scale(self, x: Value, attributes: Mapping[str, Any], name: str) -> Value:
        """A gamma of ones, which ONNX's norms cannot do without: one for all norms of a shape and
        dtype, named after the first."""
        shape = cast(tuple[int, ...], x.shape)[attributes["axis"] :]
        known = self._values.get(self._unit_scales.get((shape, x.dtype), ""))
        if known is None or not np.all(self._read(known) == 1):
            ones = np.ones(shape, x.dtype)
            known = self.add_constant(ones, f"{name.removesuffix('.output')}.weight")
            self._unit_scales[shape, x.dtype] = known.name
        return known

    def _store(self, array: Array, name: str) -> tuple[Any, str]:
        tensor = ir.tensor(array, name=name)
        raw = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.model.graph.register_initializer(raw)
        return raw, name

    def _emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        name: str,
        like: Node | None,
    ) -> tuple[Any, list[Value]]:
        x = cast(Value, inputs[0])
        raw_inputs = [cast(ir.Value, v.raw) if v is not None else None for v in inputs]
        written = dict(attributes)
        if self.opset >= operator(op).parameters_since:
            for parameter in operator(op).parameters:
                if parameter not in written:
                    break  # it may be absent, or computed by the graph
                given = written.pop(parameter)
                array = np.array(given, x.dtype if isinstance(given, float) else np.int64)
                raw_inputs.append(self.add_constant(array, f"{name}.{parameter}").raw)
        raw = emit.new_node(op, self.opset, raw_inputs, written, name, like)
        shape = emit.shape_after(op, [v for v in inputs if v is not None], attributes)
        dtype = np.dtype(np.int64) if op == "Shape" else attributes.get("to", x.dtype)
        names = [name]
        if operator(op).norm_with_sum:
            self.model.opset_imports.setdefault(operator(op).domain, operator(op).since)
            names = [name, "", "", self._unique(f"{name}.sum")]
        outputs = []
        for index, (output, own) in enumerate(zip(raw.outputs, names, strict=True)):
            output.name = own
            if own and dtype is not None:
                output.dtype = ir.DataType.from_numpy(dtype)
            typed = (shape, dtype) if own else (None, None)
            outputs.append(Value(own or f"{name}.{index}", output, *typed))
        emit.place(self.model.graph, raw, raw_inputs)
        return raw, outputs

    def _rewire(self, node: Node, index: int, value: Value) -> None:
        raw = cast(ir.Node, node.raw)
        if index < len(raw.inputs):
            raw.replace_input_with(index, cast(ir.Value, value.raw))
        elif index < len(node.inputs):  # read inside a subgraph
            replace_captured(raw, cast(Value, node.inputs[index]).raw, value.raw)
        else:
            raw.resize_inputs(index + 1)
            raw.replace_input_with(index, cast(ir.Value, value.raw))

    def _rewire_output(self, position: int, value: Value) -> None:
        """The new value takes the name of the output, by which callers know it."""
        graph = self.model.graph
        old, new = graph.outputs[position], cast(ir.Value, value.raw)
        name = str(old.name)
        graph.outputs[position] = new
        new.shape = new.shape or old.shape
        new.type = new.type or old.type
        if new.is_graph_input() or new.is_initializer() or new.producer() is None:
            raise ValueError(f"the output '{name}' would become an input or a constant")
        self._rename(self._values[name], self._unique(f"{name}_before"))
        self._rename(value, name)

    def _rename(self, value: Value, name: str) -> None:
        del self._values[value.name]
        cast(ir.Value, value.raw).name = name
        value.name = name
        self._values[name] = value

    def _unique(self, name: str) -> str:
        unique = super()._unique(name)
        if unique != name:
            self._wanted_names[unique] = name
        return unique

    def _erase(self, nodes: Sequence[Node]) -> None:
        RemoveUnusedNodesPass()(self.model)
        alive = {str(v.name) for v in self.model.graph.initializers.values()}
        alive |= {str(o.name) for n in self.model.graph for o in n.outputs}
        alive |= {str(v.name) for v in self.model.graph.inputs}
        for value in [v for v in self._values.values() if v.name not in alive]:
            del self._values[value.name]
        for unique, wanted in list(self._wanted_names.items()):
            if unique in self._values and wanted not in self._values:
                self._rename(self._values[unique], wanted)
                del self._wanted_names[unique]


def _held_constants(graph: ir.Graph, types: Types) -> set[ir.Value]:
    """The constants without those that are computed from a few numbers and take more memory than a
    file may ask for, and without what is computed from these."""
    constants, large = constant_values(graph), set[ir.Value]()
    for node in graph:
        written = [value for value in node.outputs if value.name]
        if node.outputs[0].const_value is not None or not constants.intersection(written):
            continue
        shapes = [types.get(str(value.name), (None, None))[0] for value in written]
        counts = [None if shape is None else math.prod(shape) for shape in shapes]
        sized = operator(node.op_type).takes_sizes or operator(node.op_type).product == "einsum"
        if (
            not large.isdisjoint([*node.inputs, *captured_values(node)])
            or any(count is not None and count > _LARGEST_CONSTANT for count in counts)
            or (sized and None in counts)
        ):
            large.update(node.outputs)
    return constants - large


def _reading(node: Node) -> tuple[Any, ...]:
    """What the view shows of a node, to be compared."""
    names = [value.name for value in node.outputs]
    return node.op, node.inputs, node.attributes, names, node.scope, node.nested


def _attribute(attribute: ir.Attr) -> Any:
    value = attribute.value
    return tuple(value) if isinstance(value, list) else value


def _in_short(attribute: ir.Attr) -> Hashable | None:
    """What an attribute holds, where it is a number, a text, a few of them or a small tensor."""
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        short = value.nbytes <= _SHORT
        return (str(value.dtype), str(value.shape), value.tobytes()) if short else None
    simple = isinstance(value, int | float | str | bytes)
    if isinstance(value, list | tuple):
        simple = len(value) <= _SHORT and all(isinstance(v, int | float | str) for v in value)
    return repr(value) if simple else None


def _is_sized(value: Value) -> bool:
    return value.shape == () or (value.producer is not None and value.producer.op == "Shape")
