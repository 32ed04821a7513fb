"""Runs a slice of an ONNX graph: with ONNX Runtime in its own dtypes, or with onnx's reference
evaluator in float64.

ONNX Runtime's graph optimizer is off: it changes results silently (it fuses look-alikes of
LayerNormalization), and norms are proven with these results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Runner, is_floating, topological
from normswap.graph.onnx.float64_ops import float64_ops
from normswap.graph.onnx.nodes import captured_values, nested_operators

_INLINE_LIMIT = 1_500_000_000  # bytes; protobuf ends at 2 GiB
_KEPT_LIMIT = 500_000_000  # bytes of converted constants that a float64 runner keeps
_FLOAT_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
Input = tuple[ir.Value, np.dtype[Any] | None, tuple[int, ...] | None]
"""A value that a slice is given, with its dtype and its shape (None: unknown, or any)."""


def slice_parts(
    inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that compute ``outputs`` from ``inputs``, in topological order, and the constants
    that they read.

    Raises ValueError if an output depends on an input of the graph that is not in ``inputs``.
    """
    given = set(inputs)
    constants: dict[ir.Value, None] = {}

    def producers(values: Iterable[ir.Value | None]) -> Iterator[ir.Node]:
        for value in values:
            if value is None or value in given:
                continue
            node = value.producer()
            if value.const_value is not None:
                constants[value] = None
            elif node is None:
                raise ValueError(f"the input '{value.name}' is needed and was not given")
            else:
                yield node

    def behind(node: ir.Node) -> Iterator[ir.Node]:
        return producers([*node.inputs, *captured_values(node)])

    return topological(producers(outputs), behind), list(constants)


def runtime_runner(model: ir.Model, inputs: Sequence[Input], outputs: Sequence[ir.Value]) -> Runner:
    """A function from arrays for ``inputs`` to arrays of ``outputs``, by ONNX Runtime on the CPU.

    Raises ValueError as ``slice_parts`` does, and NormswapError where the runtime refuses the
    slice.
    """
    proto, fetched = slice_proto(model, inputs, outputs)
    import onnxruntime  # proofs and sizes need none

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised, not printed
    try:
        session = _session(proto, options)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise NormswapError(f"ONNX Runtime refuses the graph: {_first_line(error)}") from error
    names = [str(value.name) for value, _, _ in inputs]

    def run(arrays: Sequence[Array]) -> list[Array]:
        feeds = dict(zip(names, arrays, strict=True))
        used = {i.name for i in session.get_inputs()}
        try:
            return list(session.run(fetched, {k: v for k, v in feeds.items() if k in used}))
        except Exception as error:
            raise NormswapError(f"ONNX Runtime fails: {_first_line(error)}") from error

    return run


def fault_of(model: ir.Model) -> str:
    """Why ONNX Runtime refuses the model; '' where it takes it."""
    try:
        inputs: list[Input] = [
            (v, v.dtype.numpy() if v.dtype is not None else None, None) for v in model.graph.inputs
        ]
        runtime_runner(model, inputs, model.graph.outputs)
    except Exception as error:  # a damaged model may lead to any
        return _first_line(error)
    return ""


def slice_proto(
    model: ir.Model, inputs: Sequence[Input], outputs: Sequence[ir.Value]
) -> tuple[onnx.ModelProto, list[str]]:
    """A slice as a model of its own, and the names of its outputs there.

    Raises ValueError as ``slice_parts`` does.
    """
    nodes, constants = slice_parts([value for value, _, _ in inputs], outputs)
    graph = onnx.GraphProto(name="slice")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    for value, dtype, shape in inputs:
        kind = int(ir.DataType.from_numpy(dtype)) if dtype is not None else 0
        graph.input.append(onnx.helper.make_tensor_value_info(str(value.name), kind, shape))
    graph.initializer.extend(_tensor(v) for v in constants if v.producer() is None)
    graph.node.extend(ir.serde.serialize_node(n) for v in constants if (n := v.producer()))
    # Inputs and constants may be asked for as outputs too, which needs a node in between.
    fetched = [f"{value.name}__fetched" for value in outputs]
    for value, alias in zip(outputs, fetched, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [str(value.name)], [alias]))
        graph.output.append(onnx.ValueInfoProto(name=alias))
    proto = onnx.ModelProto(graph=graph, ir_version=max(8, min(model.ir_version, 11)))
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    return proto, fetched


def double_runner(
    model: ir.Model,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    dtype: Any = np.float64,
) -> Runner:
    """The same by onnx's reference evaluator, node by node, with every float in ``dtype``.

    ``dtype=None`` keeps the dtypes. Raises ValueError as ``slice_parts`` does, and NormswapError
    for an operator that the evaluator lacks.
    """
    nodes, held = slice_parts(inputs, outputs)
    constants = {str(value.name): value for value in [*held, *outputs]}
    steps = [Step(node, model.opset_imports, dtype) for node in nodes]
    last: dict[str, int] = {name: i for i, step in enumerate(steps) for name in step.reads}
    wanted = [str(v.name) for v in outputs]

    def convert(array: Array) -> Array:
        array = np.asarray(array)
        floats = dtype is not None and is_floating(array.dtype)
        return array.astype(dtype, copy=False) if floats else array

    kept: dict[str, Array] = {}  # constants, so that many runs convert them once
    room = [_KEPT_LIMIT]

    def constant(name: str) -> Array:
        if name in kept:
            return kept[name]
        tensor = constants[name].const_value
        assert tensor is not None  # else it would be an input or the result of a step
        array = convert(tensor.numpy())
        if array.nbytes <= room[0]:
            kept[name] = array
            room[0] -= array.nbytes
        return array

    def run(arrays: Sequence[Array]) -> list[Array]:
        known = {str(v.name): convert(a) for v, a in zip(inputs, arrays, strict=True)}

        def load(name: str) -> Array:
            return known[name] if name in known else constant(name)

        for index, step in enumerate(steps):
            results = step.run([load(name) for name in step.reads])
            known.update({n: convert(r) for n, r in zip(step.writes, results, strict=True)})
            for name in step.reads:
                if last[name] == index and name not in wanted:
                    known.pop(name, None)
        return [load(name) for name in wanted]

    return run


class Step:
    """One node as a graph of its own for the reference evaluator."""

    def __init__(self, node: ir.Node, opsets: Mapping[str, int], dtype: Any) -> None:
        proto = ir.serde.serialize_node(node)
        if dtype is not None:
            _cast_to_double(proto)
        captured = [str(value.name) for value in captured_values(node)]
        self.reads = list(dict.fromkeys([*(n for n in proto.input if n), *captured]))
        self.writes = [name for name in proto.output if name]
        graph = onnx.GraphProto(name="step", node=[proto])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in self.reads)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.writes)
        try:
            ops = float64_ops({node.op_type, *nested_operators(node)})
            self._evaluator = ReferenceEvaluator(graph, opsets=dict(opsets), new_ops=ops)
        except (NotImplementedError, RuntimeError) as error:
            raise NormswapError(
                f"the operator {node.domain or 'ai.onnx'}.{node.op_type} cannot be evaluated in "
                f"float64: {_first_line(error)}"
            ) from error

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """The arrays of ``writes`` from those of ``reads``."""
        with np.errstate(all="ignore"):
            results = self._evaluator.run(None, dict(zip(self.reads, arrays, strict=True)))
        return [np.asarray(result) for result in results]


def _tensor(value: ir.Value) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    proto = onnx.TensorProto(name=str(value.name), data_type=int(tensor.dtype))
    proto.dims.extend(tensor.shape.numpy())
    proto.raw_data = tensor.tobytes()
    return proto


def _session(proto: onnx.ModelProto, options: Any) -> Any:
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    size = sum(len(t.raw_data) for t in proto.graph.initializer)
    if size < _INLINE_LIMIT:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers)
    options.add_session_config_entry("session.disable_prepacking", "1")  # half as much memory again
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="slice.data")
        return onnxruntime.InferenceSession(path, options, providers)


def _cast_to_double(proto: onnx.NodeProto) -> None:
    """Casts between float types become casts to float64, in subgraphs as well."""
    for attribute in proto.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in _FLOAT_TYPES:
            attribute.i = onnx.TensorProto.DOUBLE
        for graph in [attribute.g, *attribute.graphs]:
            for node in graph.node:
                _cast_to_double(node)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
