"""Runs a slice of an ONNX graph: with ONNX Runtime in its own dtypes, or with onnx's reference
evaluator in float64.

ONNX Runtime's graph optimizer is switched off here: it changes results silently (it fuses
look-alikes of LayerNormalization), and this is what the proofs are made with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Runner, is_floating
from normswap.graph.onnx.fast_ops import fast_ops
from normswap.graph.onnx.subgraphs import captured_values, nested_operators

_INLINE_LIMIT = 1_500_000_000  # bytes; protobuf ends at 2 GiB
_KEPT_LIMIT = 500_000_000  # bytes of converted constants that a float64 runner keeps
_FLOAT_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


def runtime_runner(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    constants: Sequence[ir.Value],
    inputs: Sequence[tuple[str, np.dtype[Any] | None, tuple[int, ...] | None]],
    outputs: Sequence[str],
) -> Runner:
    """A function from arrays for ``inputs`` to arrays of ``outputs``, by ONNX Runtime on the CPU.

    ``nodes`` in topological order; ``constants``: the values with a tensor that they read.
    ``inputs``: names, dtypes and shapes (None: any);
    ``outputs``: names.
    Raises NormswapError where the runtime refuses the slice.
    """
    import onnxruntime  # proofs and sizes need none

    names = [name for name, _, _ in inputs]
    proto, fetched = slice_proto(model, nodes, constants, inputs, outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised, not printed
    try:
        session = _session(proto, options)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise NormswapError(f"ONNX Runtime refuses the graph: {_first_line(error)}") from error

    def run(arrays: Sequence[Array]) -> list[Array]:
        feeds = dict(zip(names, arrays, strict=True))
        used = {i.name for i in session.get_inputs()}
        try:
            return list(session.run(fetched, {k: v for k, v in feeds.items() if k in used}))
        except Exception as error:
            raise NormswapError(f"ONNX Runtime fails: {_first_line(error)}") from error

    return run


def slice_proto(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    constants: Sequence[ir.Value],
    inputs: Sequence[tuple[str, np.dtype[Any] | None, tuple[int, ...] | None]],
    outputs: Sequence[str],
) -> tuple[onnx.ModelProto, list[str]]:
    """A slice as a model of its own, and what its outputs are called there."""
    graph = onnx.GraphProto(name="slice")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    names = [name for name, _, _ in inputs]
    for name, dtype, shape in inputs:
        kind = int(ir.DataType.from_numpy(dtype)) if dtype is not None else 0
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    initializers = [v for v in constants if v.name not in names and v.producer() is None]
    graph.initializer.extend(_tensor(v) for v in initializers)
    graph.node.extend(ir.serde.serialize_node(n) for v in constants if (n := v.producer()))
    # Inputs and constants may be asked for as outputs too, which needs a node in between.
    fetched = [f"{name}__fetched" for name in outputs]
    for name, alias in zip(outputs, fetched, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [name], [alias]))
        graph.output.append(onnx.ValueInfoProto(name=alias))
    proto = onnx.ModelProto(graph=graph, ir_version=max(8, min(model.ir_version, 11)))
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    return proto, fetched


def double_runner(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    fetch: Mapping[str, Callable[[], Array]],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    dtype: Any = np.float64,
) -> Runner:
    """The same by onnx's reference evaluator, node by node, with every float in ``dtype``.

    ``fetch``: how to get each constant that the nodes read. ``dtype=None`` keeps the dtypes.
    Raises NormswapError for an operator that the evaluator lacks.
    """
    steps = [Step(node, model.opset_imports, dtype) for node in nodes]
    last: dict[str, int] = {name: i for i, step in enumerate(steps) for name in step.reads}
    wanted = [str(v.name) for v in outputs]

    def convert(array: Array) -> Array:
        array = np.asarray(array)
        return array.astype(dtype) if dtype is not None and is_floating(array.dtype) else array

    kept: dict[str, Array] = {}  # constants, so that many runs convert them once
    room = [_KEPT_LIMIT]

    def constant(name: str) -> Array:
        if name in kept:
            return kept[name]
        array = convert(fetch[name]())
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
        self.reads = list(dict.fromkeys([*(n for n in proto.input if n), *_captured(node)]))
        self.writes = [name for name in proto.output if name]
        graph = onnx.GraphProto(name="step", node=[proto])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in self.reads)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.writes)
        try:
            ops = fast_ops({node.op_type, *nested_operators(node)})
            self._evaluator = ReferenceEvaluator(graph, opsets=dict(opsets), new_ops=ops)
        except (NotImplementedError, RuntimeError) as error:
            raise NormswapError(
                f"the operator {node.domain or 'ai.onnx'}.{node.op_type} cannot be evaluated in "
                f"float64: {_first_line(error)}"
            ) from error

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            results = self._evaluator.run(None, dict(zip(self.reads, arrays, strict=True)))
        return [np.asarray(result) for result in results]


def _captured(node: ir.Node) -> list[str]:
    return [str(v.name) for v in captured_values(node)]


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
