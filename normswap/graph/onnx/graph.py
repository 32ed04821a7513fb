"""The adapter for ONNX graphs, through ``onnx_ir``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Node, Runner, Value
from normswap.graph.onnx import ops as onnx_ops
from normswap.graph.onnx.constants import constant_tensor
from normswap.graph.onnx.fixed import settle_fixed_parameters
from normswap.graph.onnx.names import module_scope, name_everything, scoped_name
from normswap.graph.onnx.opset import raise_opset
from normswap.graph.onnx.runner import double_runner, runtime_runner, slice_proto
from normswap.graph.onnx.subgraphs import (
    captured_values,
    nested_operators,
    replace_captured,
)
from normswap.graph.onnx.types import ValueType, infer_types
from normswap.graph.operators import operator

_DOMAINS = ("", "ai.onnx")
_AXES_AS_INPUT = 18  # the opset from which on ReduceMean's axes are one
_LOST_METADATA = ("pkg.torch.onnx.stack_trace",)  # of a node that a new one takes after
_log = logging.getLogger(__name__)


class OnnxGraph(Graph):
    """The view of an ``onnx_ir.Model``'s main graph.

    The model given is owned by the graph: edits change it. Its functions are inlined, its nodes
    sorted topologically, and parameters that it computes although they are fixed made constants.
    ``types`` (value name to sizes and dtype) skips shape inference, for a copy.
    """

    kind = "onnx"

    def __init__(self, model: ir.Model, types: dict[str, ValueType] | None = None) -> None:
        super().__init__()
        self.model = model
        self._wanted_names: dict[str, str] = {}  # by the unique name given in its place
        self._unit_scales: dict[Any, str] = {}  # the names of vectors of ones
        _inline_functions(model)
        try:
            model.graph.sort()
        except ValueError as error:
            raise NormswapError(f"the graph has a cycle: {error}") from error
        name_everything(model.graph)
        if types is None:
            settle_fixed_parameters(model)
        self._types = types if types is not None else infer_types(model)
        for value in model.graph.inputs:
            if value.name not in model.graph.initializers:
                self.inputs.append(self._view_value(value))
        for value in model.graph.initializers.values():
            self._view_value(value, is_constant=value.const_value is not None)
        for node in model.graph:
            self._view_node(node)
        self.outputs = [self._values[str(v.name)] for v in model.graph.outputs]
        if types is None and self._run_for_shapes():
            self.__init__(self.model, self._types)  # type: ignore[misc]  # attributes need ranks

    # -- building the view -----------------------------------------------------------------------

    def _view_value(self, raw: ir.Value, is_constant: bool = False) -> Value:
        shape, dtype = self._types.get(str(raw.name), (None, None))
        if raw.const_value is not None:
            shape = tuple(raw.const_value.shape.numpy())
            dtype = raw.const_value.dtype.numpy()
        value = Value(str(raw.name), raw, shape, dtype, is_constant)
        self._values[value.name] = value
        return value

    def _view_node(self, raw: ir.Node) -> None:
        if raw.op_type == "Constant" and raw.domain in _DOMAINS:
            output = raw.outputs[0]
            tensor = constant_tensor(output)
            if tensor is not None:
                output.const_value = tensor
                output.dtype = tensor.dtype
                self._view_value(output, is_constant=True)
                return
        inputs = [self._values[str(v.name)] if v is not None else None for v in raw.inputs]
        outputs = [
            self._view_value(v) if v.name else Value(f"{raw.outputs[0].name}.{i}", v)
            for i, v in enumerate(raw.outputs)  # an omitted optional output has no name
        ]
        op = raw.op_type if raw.domain in _DOMAINS else f"{raw.domain}.{raw.op_type}"

        def is_constant(index: int) -> bool:
            return inputs[index] is None or cast(Value, inputs[index]).is_constant

        def constant(index: int) -> Array | None:
            value = inputs[index] if index < len(inputs) else None
            return None if value is None else self.constant(value)

        data = onnx_ops.data_inputs(op, len(inputs), is_constant)
        ranks = [v.rank if v is not None else None for v in [*inputs[:1], outputs[0]]]
        own = {name: _attribute(a) for name, a in raw.attributes.items()}
        attributes = onnx_ops.attributes(op, own, ranks, constant, data)
        if op == "GatherND":
            indices = inputs[1]
            depth = indices.shape[-1] if indices is not None and indices.shape else None
            attributes["depth"] = None if depth is None else depth + attributes.get("batch_dims", 0)
        captured = [self._values[str(v.name)] for v in captured_values(raw)]
        scope, nested = module_scope(raw), nested_operators(raw)
        node = Node(op, [*inputs[:data], *captured], attributes, outputs, raw, scope, nested)
        constants = all(v is None or v.is_constant for v in [*inputs, *captured])
        for value in outputs:
            value.is_constant = constants and bool(inputs) and not node.operator.random
        self.nodes.append(node)

    def _run_for_shapes(self) -> bool:
        """Shapes that inference cannot give come from one run on zeros, of as little as it can;
        whether that gave any."""
        unknown = [
            v
            for n in self.nodes
            for v in n.outputs
            if v.name and not v.is_constant and (v.shape is None or v.dtype is None)
        ]
        if not unknown:
            return False
        feeds = self._known_sizes()
        reads = {v for n in self.ancestors(unknown, stop=feeds) for v in n.dynamic_inputs()}
        needed = [v for v in self.inputs if v in reads]
        if any(v.shape is None or v.dtype is None for v in needed):
            return False
        feeds = {v: array for v, array in feeds.items() if v in reads}
        feeds |= {v: np.zeros(cast(tuple[int, ...], v.shape), v.dtype) for v in needed}
        try:
            arrays = self.evaluate(unknown, feeds)
        except NormswapError as error:
            _log.debug("the run for shapes failed: %s", error)
            return False
        for value, array in zip(unknown, arrays, strict=True):
            value.shape, value.dtype = array.shape, array.dtype
            self._types[value.name] = (value.shape, value.dtype)
        return True

    def _known_sizes(self) -> dict[Value, Array]:
        """What Shape nodes yield where the shape is known already."""
        found = {}
        for node in self.nodes:
            shape = node.data_input().shape if node.op == "Shape" else None
            if shape is not None and node.output.dtype is not None:
                span = slice(node.attributes.get("start", 0), node.attributes.get("end"))
                found[node.output] = np.asarray(shape[span], np.int64)
        return found

    # -- reading and evaluating ------------------------------------------------------------------

    def slice(self, inputs: Sequence[Value], outputs: Sequence[Value], dtype: Any = None) -> Runner:
        raws, constants = self._slice_parts(inputs, outputs)
        raw_outputs = [cast(ir.Value, v.raw) for v in outputs]
        if dtype is None:
            # The sizes of a list of sizes and of a scalar are fixed, others may be any.
            typed = [(v.name, v.dtype, v.shape if _is_sized(v) else None) for v in inputs]
            return runtime_runner(self.model, raws, constants, typed, [v.name for v in outputs])
        raw_inputs = [cast(ir.Value, v.raw) for v in inputs]
        fetch = {str(v.name): _fetch(v) for v in [*constants, *raw_outputs]}
        return double_runner(self.model, raws, fetch, raw_inputs, raw_outputs, dtype)

    def extract(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.ModelProto:
        """A slice as a model of its own, whose outputs stand in the order of ``outputs``.

        Raises ValueError if the slice needs an input that is not among ``inputs``.
        """
        raws, constants = self._slice_parts(inputs, outputs)
        typed = [(v.name, v.dtype, v.shape) for v in inputs]
        return slice_proto(self.model, raws, constants, typed, [v.name for v in outputs])[0]

    def _slice_parts(
        self, inputs: Sequence[Value], outputs: Sequence[Value]
    ) -> tuple[list[ir.Node], list[ir.Value]]:
        """The nodes that compute ``outputs`` from ``inputs``, and the constants they read."""
        given = {cast(ir.Value, v.raw) for v in inputs}
        constants: dict[ir.Value, None] = {}
        order: dict[ir.Node, None] = {}
        opened: set[ir.Node] = set()
        stack: list[ir.Node] = []

        def visit(value: ir.Value | None) -> None:
            if value is None or value in given:
                return
            node = value.producer()
            if value.const_value is not None:
                constants[value] = None
            elif node is None:
                raise ValueError(f"the input '{value.name}' is needed and was not given")
            elif node not in opened:
                stack.append(node)

        for value in outputs:
            visit(cast(ir.Value, value.raw))
        while stack:
            node = stack[-1]
            if node in opened:
                stack.pop()
                order[node] = None
                continue
            opened.add(node)
            for read in [*node.inputs, *captured_values(node)]:
                visit(read)
        return list(order), list(constants)

    def _read(self, value: Value) -> Array:
        tensor = cast(ir.Value, value.raw).const_value
        assert tensor is not None
        return tensor.numpy()

    def _compute_constant(self, value: Value) -> Array:
        raws, constants = self._slice_parts([], [value])
        fetch = {str(v.name): _fetch(v) for v in constants}
        return double_runner(self.model, raws, fetch, [], [value.raw], dtype=None)([])[0]

    # -- editing ---------------------------------------------------------------------------------

    def as_attribute(self, number: float) -> float:
        return float(np.float32(number))

    def require(self, op: str) -> None:
        wanted = operator(op).opset
        if self.opset >= wanted:
            return
        before = self.opset
        anew = raise_opset(self.model, wanted, self._types)
        if self.opset < wanted:
            raise NormswapError(
                f"{op} needs opset {wanted}, and opset {before} could not be raised to it; export "
                f"the model again with a newer opset"
            )
        if not anew:
            return
        # The converter made all nodes anew; values of the same names have the same types.
        known = {v.name: (v.shape, v.dtype) for v in self._values.values() if v.shape is not None}
        made = {str(v.name) for node in self.model.graph for v in node.outputs if v.name}
        self.__init__(self.model, known if made <= known.keys() else None)  # type: ignore[misc]
        lost = {v.name for v in self._values.values() if v.shape is None} & known.keys()
        if lost:  # what came from elsewhere than this inference
            types = self._types | {name: known[name] for name in lost}
            self.__init__(self.model, types)  # type: ignore[misc]

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

    def copy(self) -> OnnxGraph:
        types = {v.name: (v.shape, v.dtype) for v in self._values.values()}
        return OnnxGraph(self.model.clone(), types)

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

    def _emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        name: str,
        like: Node | None,
    ) -> tuple[Any, list[Value]]:
        known = operator(op)
        if not known.writable:
            raise ValueError(f"cannot write the operator {op} into an ONNX graph")
        if known.domain:
            self.model.opset_imports.setdefault(known.domain, known.since)
        if self.opset < known.opset:
            raise ValueError(f"{op} needs opset {known.opset}")
        written = {k: v for k, v in attributes.items() if not (k == "training_mode" and v == 0)}
        if op == "Cast":
            written["to"] = int(ir.DataType.from_numpy(attributes["to"]))
        raw_inputs = [cast(ir.Value, v.raw) if v is not None else None for v in inputs]
        if op == "ReduceMean" and self.opset >= _AXES_AS_INPUT:
            axes = np.array(written.pop("axes"), np.int64)
            raw_inputs.append(cast(ir.Value, self.add_constant(axes, f"{name}.axes").raw))
        names = [name]
        if known.norm_with_sum:  # normalised, mean, deviation, sum
            names += ["", "", self._unique(f"{name}.sum")]
        raw = ir.node(
            op,
            raw_inputs,
            written,
            domain=known.domain,
            num_outputs=len(names),
            name=scoped_name(like.scope if like else "", name, op),
        )
        x = cast(Value, inputs[0])
        shape = _shape_after(op, [v for v in inputs if v is not None], attributes)
        dtype = attributes.get("to", x.dtype)
        for output, own in zip(raw.outputs, names, strict=True):
            output.name = own
            if own:
                if dtype is not None:
                    output.dtype = ir.DataType.from_numpy(dtype)
                self._types[own] = (shape, dtype)
        if like is not None:
            source = cast(ir.Node, like.raw).metadata_props
            raw.metadata_props.update({k: v for k, v in source.items() if k not in _LOST_METADATA})
        producers = [p for v in raw_inputs if v is not None and (p := v.producer()) is not None]
        if not producers:
            self.model.graph.insert_before(next(iter(self.model.graph)), raw)
        elif len(set(producers)) == 1:
            self.model.graph.insert_after(producers[0], raw)
        else:
            order = {n: i for i, n in enumerate(self.model.graph)}
            self.model.graph.insert_after(max(producers, key=order.__getitem__), raw)
        return raw, [
            self._view_value(v) if v.name else Value(f"{name}.{i}", v)
            for i, v in enumerate(raw.outputs)
        ]

    def _unit_scale(self, x: Value, attributes: Mapping[str, Any], name: str) -> Value:
        """A gamma of ones, which ONNX's norms cannot do without: one for all of a shape and dtype,
        named after the first."""
        shape = cast(tuple[int, ...], x.shape)[attributes["axis"] :]
        known = self._values.get(self._unit_scales.get((shape, x.dtype), ""))
        if known is None or not np.all(self._read(known) == 1):
            ones = np.ones(shape, x.dtype)
            known = self.add_constant(ones, f"{name.removesuffix('.output')}.weight")
            self._unit_scales[shape, x.dtype] = known.name
        return known

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return next((v for d, v in self.model.opset_imports.items() if d in _DOMAINS), 1)

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
        """The new value takes the output's name, which callers know it by."""
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


def _inline_functions(model: ir.Model) -> None:
    """Puts the bodies of the model's own functions in place of their calls."""
    if model.functions:
        try:
            InlinePass()(model)
        except Exception as error:  # whatever a damaged body leads to
            raise NormswapError(f"its functions cannot be inlined: {error}") from error


def _shape_after(
    op: str, inputs: Sequence[Value], attributes: Mapping[str, Any]
) -> tuple[int, ...] | None:
    shape = inputs[0].shape
    if shape is None:
        return None
    if op == "Transpose":
        return tuple(shape[axis] for axis in attributes["perm"])
    if operator(op).product:
        return (*shape[:-1], cast(tuple[int, ...], inputs[1].shape)[1])
    if op == "ReduceMean":  # which passes write with keepdims
        axes = attributes["axes"]
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if operator(op).combines_two:
        other = inputs[1].shape
        return None if other is None else tuple(np.broadcast_shapes(shape, other))
    return shape


def _is_sized(value: Value) -> bool:
    return value.shape == () or (value.producer is not None and value.producer.op == "Shape")


def _attribute(attribute: ir.Attr) -> Any:
    value = attribute.value
    return tuple(value) if isinstance(value, list) else value


def _fetch(value: ir.Value) -> Any:
    def fetch() -> Array:
        if value.const_value is None:
            raise ValueError(f"'{value.name}' is no constant")
        return value.const_value.numpy()

    return fetch
