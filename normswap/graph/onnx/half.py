"""An ONNX graph in half precision: types, weights, attributes, and Casts where types meet."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from normswap.graph.graph import Value
from normswap.graph.onnx import emit
from normswap.graph.onnx.nodes import DOMAINS, captured_values, replace_captured, subgraphs
from normswap.graph.onnx.segments import release
from normswap.graph.onnx.single_nodes import Type
from normswap.graph.operators import operator
from normswap.graph.rounding import as_half

_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_LARGE = 1 << 20  # bytes of a weight
_TYPES = ("to", "dtype", "output_dtype")
"""Attributes that hold the type of a result."""
Dtypes = Mapping[ir.Value, ir.DataType | None]


def why_not_half(node: ir.Node, opsets: Mapping[str, int], half: ir.DataType) -> str:
    """Why a node cannot compute in ``half``; '' if it can, or computes nothing that is floating."""
    if any(True for _ in subgraphs(node)):
        return "it runs bodies of other operators"
    forms = _forms(node.op_type, node.domain, opsets.get(node.domain, 1))
    if forms is None:
        return "" if _of_runtime(node) else "it is not known in which types it computes"
    places = [*_places(forms.inputs, len(node.inputs)), *_places(forms.outputs, len(node.outputs))]
    floating = [allowed for allowed in places if allowed & {_type(t) for t in _WIDE}]
    if floating and not any(_type(half) in allowed for allowed in floating):
        return f"ONNX has no {half.numpy().name} form of it in this opset"
    return ""


def convert(
    model: ir.Model,
    values: Iterable[Value],
    wide: Collection[ir.Node],
    dtype: np.dtype[Any],
    keep_io: bool,
) -> dict[str, Type]:
    """Converts ``model``, whose values these are, in place; the types of its values then. See
    ``Graph.in_half``."""
    views = {cast(ir.Value, value.raw): value for value in values}
    dtypes = {
        raw: None if value.dtype is None else ir.DataType.from_numpy(value.dtype)
        for raw, value in views.items()
    }
    converter = _Converter(model, dtypes, wide, ir.DataType.from_numpy(dtype), keep_io)
    converter.run()
    shapes = {raw: value.shape for raw, value in views.items()}
    shapes |= {made: shapes.get(of) for made, of in converter.casts.items()}
    return {
        str(raw.name): (shapes[raw], None if found is None else found.numpy())
        for raw, found in converter.dtypes.items()
    }


class _Converter:
    """Brings ``model`` into the dtype ``half``, in place.

    ``dtypes``: of its values now, all of them. ``wide``: the nodes that go on computing as they do;
    what they read and yield is cast. ``keep_io``: the graph's inputs and outputs keep their types.

    Attributes:
        dtypes: of all values after ``run``.
        casts: the values that Casts and constants have been added for, each with what it is of.
    """

    def __init__(
        self,
        model: ir.Model,
        dtypes: Dtypes,
        wide: Collection[ir.Node],
        half: ir.DataType,
        keep_io: bool,
    ) -> None:
        self._model, self._graph, self._half = model, model.graph, half
        self._wide, self._keep_io = set(wide), keep_io
        self._before = dict(dtypes)
        self.dtypes: dict[ir.Value, ir.DataType | None] = dict(dtypes)
        self.casts: dict[ir.Value, ir.Value] = {}
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {str(value.name) for value in dtypes}

    def run(self) -> None:
        nodes = [node for node in self._graph if node.outputs[0].const_value is None]
        self._widen_constants(nodes)
        wanted = {node: list(self._wanted(node)) for node in nodes}
        self._retype_constants(nodes, wanted)
        for node in nodes:
            if node not in self._wide:
                self._retype(node)
        for given in [] if self._keep_io else self._graph.inputs:
            if self._before.get(given) in _WIDE:
                self._set(given, self._half)
        for node in nodes:
            for index, (value, dtype) in enumerate(zip(node.inputs, wanted[node], strict=True)):
                if value is not None and dtype is not None and self.dtypes[value] != dtype:
                    node.replace_input_with(index, self._as(value, dtype))
            for outer in captured_values(node):
                before = self._before.get(outer)
                if before is not None and self.dtypes[outer] != before:
                    replace_captured(node, outer, self._as(outer, before))
        self._retype_outputs()

    def _widen_constants(self, nodes: list[ir.Node]) -> None:
        """What is computed of constants for a node that computes as it does, such as the Cast of a
        bound, does too: in half precision it would be another constant."""
        fixed: set[ir.Node | None] = set()
        for node in nodes:
            read = [value for value in node.inputs if value is not None]
            if read and all(v.const_value is not None or v.producer() in fixed for v in read):
                fixed.add(node)
        for node in reversed(nodes):
            if node in self._wide:
                made = {value.producer() for value in node.inputs if value is not None}
                self._wide |= {other for other in made & fixed if other is not None}

    def _wanted(self, node: ir.Node) -> Iterator[ir.DataType | None]:
        """The type that each input has to have; None for those of no floating type."""
        places = self._allowed(node, "inputs")
        for value, allowed in zip(node.inputs, places, strict=True):
            before = None if value is None else self._before.get(value)
            if before not in _WIDE:
                yield None
            else:
                narrow = node not in self._wide and _type(self._half) in allowed
                yield self._half if narrow else before

    def _allowed(self, node: ir.Node, which: str) -> list[frozenset[str]]:
        count = len(getattr(node, which))
        forms = _forms(node.op_type, node.domain, self._model.opset_imports.get(node.domain, 1))
        if forms is None:
            return [frozenset({_type(self._half)})] * count
        return list(_places(getattr(forms, which), count))

    def _retype_constants(
        self, nodes: list[ir.Node], wanted: Mapping[ir.Node, list[ir.DataType | None]]
    ) -> None:
        """Those that are read in half precision alone, in place."""
        read: dict[ir.Value, set[ir.DataType | None]] = {}
        for node in nodes:
            for value, dtype in zip(node.inputs, wanted[node], strict=True):
                if value is not None and value.const_value is not None:
                    read.setdefault(value, set()).add(dtype)
            for value in captured_values(node):
                read.setdefault(value, set()).add(self._before.get(value))
        for value, dtypes in read.items():
            if dtypes == {self._half} and value not in self._graph.outputs:
                tensor = _tensor(value, self._half, value.name)
                producer = value.producer()
                if producer is not None:  # a Constant node, which may hold a number of its own kind
                    producer.attributes.clear()
                    producer.attributes["value"] = ir.AttrTensor("value", tensor)
                value.const_value = tensor
                self._set(value, self._half)

    def _retype(self, node: ir.Node) -> None:
        """The attributes of a node, and the types of its outputs."""
        for name in _TYPES:
            held = node.attributes.get(name)
            if held is not None and held.value in [int(dtype) for dtype in _WIDE]:
                node.attributes[name] = ir.AttrInt64(name, int(self._half))
        filled = node.attributes.get("value")
        if filled is not None and filled.type == ir.AttributeType.TENSOR:
            if filled.value.dtype in _WIDE:
                tensor = ir.tensor(as_half(filled.value.numpy(), self._half.numpy()))
                node.attributes["value"] = ir.AttrTensor("value", tensor)
        elif filled is None and node.op_type == "ConstantOfShape":  # its default is a float32
            zero = ir.tensor(np.zeros(1, self._half.numpy()))
            node.attributes["value"] = ir.AttrTensor("value", zero)
        for value, allowed in zip(node.outputs, self._allowed(node, "outputs"), strict=True):
            if self._before.get(value) in _WIDE and _type(self._half) in allowed:
                self._set(value, self._half)

    def _set(self, value: ir.Value, dtype: ir.DataType) -> None:
        value.type = ir.TensorType(dtype)  # copies of the graph share the old one
        self.dtypes[value] = dtype

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` in another type: by a Cast, or, of a constant, as another one."""
        if (value, dtype) not in self._made:
            held = value.const_value is not None
            made = self._constant(value, dtype) if held else self._cast(value, dtype)
            self._made[value, dtype] = made
        return self._made[value, dtype]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = self._free(f"{value.name}.{dtype.numpy().name}")
        tensor = _tensor(value, dtype, name)
        made = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(made)
        self.dtypes[made], self.casts[made] = dtype, value
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str = "") -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(dtype)})
        made = node.outputs[0]
        made.name = name or self._free(f"{value.name}.{dtype.numpy().name}")
        node.name = f"{made.name}/Cast"
        made.shape, made.type = value.shape, ir.TensorType(dtype)
        emit.place(self._graph, node, [value])
        self.dtypes[made], self.casts[made] = dtype, value
        return made

    def _free(self, name: str) -> str:
        wanted, count = name, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def _retype_outputs(self) -> None:
        """Outputs are known by their names, which go to what is cast."""
        for place, value in enumerate(list(self._graph.outputs)):
            before, now = self._before.get(value), self.dtypes[value]
            wanted = before if self._keep_io else self._half
            if before not in _WIDE or now is None or wanted is None or now == wanted:
                continue
            if value.is_graph_input() or value.const_value is not None:
                continue
            name = str(value.name)
            value.name = self._free(f"{name}.{now.numpy().name}")
            self._graph.outputs[place] = self._cast(value, wanted, name)


def _tensor(value: ir.Value, dtype: ir.DataType, name: str | None) -> ir.TensorProtocol:
    """The constant ``value`` in another type. A large one is rounded whenever it is read, so that
    the weights of a large model stay in their file."""
    source = cast(ir.TensorProtocol, value.const_value)

    def converted() -> ir.Tensor[Any]:
        array = as_half(source.numpy(), dtype.numpy())
        release(source)
        return ir.Tensor(array, dtype, name=name)

    if source.nbytes < _LARGE:
        return converted()
    return ir.LazyTensor(converted, dtype=dtype, shape=ir.Shape(source.shape.numpy()), name=name)


# -- the types that operators are declared with ---------------------------------------------------


class _Forms:
    """The types allowed at each place; of a variadic operator the last one repeats."""

    def __init__(self, schema: Any) -> None:
        variables = {
            held.type_param_str: frozenset(held.allowed_type_strs)
            for held in schema.type_constraints
        }
        self.inputs, self.outputs = (
            [variables.get(p.type_str, frozenset({p.type_str})) for p in places]
            for places in (schema.inputs, schema.outputs)
        )


@functools.cache
def _forms(op_type: str, domain: str, version: int) -> _Forms | None:
    domain = "" if domain in DOMAINS else domain
    try:
        return _Forms(onnx.defs.get_schema(op_type, version, domain))
    except onnx.defs.SchemaError:
        return None


def _places(known: list[frozenset[str]], count: int) -> Iterator[frozenset[str]]:
    for index in range(count):
        yield known[min(index, len(known) - 1)] if known else frozenset()


def _type(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"


def _of_runtime(node: ir.Node) -> bool:
    """Whether it is one of ONNX Runtime's own operators that take half precision."""
    row = operator(node.op_type)
    return bool(row.domain and (row.normalises or row.activation)) or bool(row.attention)
