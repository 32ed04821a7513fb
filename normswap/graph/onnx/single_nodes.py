"""What one node of an ONNX graph yields, found within bounds on time and memory.

A file may ask for any size, so nothing of it is run before it is known how much that takes: ONNX's
shape inference says it, from the types and the small contents of what the node reads. Only an
operator that inference does not know is run, by itself and on zeros, with a limit on its inputs, on
ONNX Runtime's memory and on its time. What is not found within these stays unknown.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normswap.graph.graph import Array
from normswap.graph.onnx.evaluate import slice_proto
from normswap.graph.onnx.nodes import captured_values, repeats_a_body
from normswap.graph.onnx.segments import Input
from normswap.graph.operators import operator

Shape = tuple[int, ...]
Type = tuple[Shape | None, np.dtype[Any] | None]
"""The sizes and the dtype of a value; None where unknown."""

SMALL = 64
"""Elements of anything that is computed for its sizes."""
_READ = 1 << 22  # elements that a node may read to be run
_READ_IN_ALL = 1 << 27
_MEMORY = 1 << 29  # bytes that ONNX Runtime may take
_SECONDS = 5.0
_NUMBERS = "biuf"
_log = logging.getLogger(__name__)


class SingleNodes:
    """Finds the types of nodes' outputs, one node after the other.

    ``model``: what the nodes are from, which tells the versions of their operators.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._left = _READ_IN_ALL

    def inferred(
        self, node: ir.Node, types: Mapping[str, Type], arrays: Mapping[str, Array]
    ) -> dict[str, Type]:
        """The types of the outputs that ONNX's shape inference finds.

        ``types``: of the values that the node reads; ``arrays``: the contents of some of them.
        """
        graph = onnx.GraphProto(name="node", node=[ir.serde.serialize_node(node)])
        for value in _read(node):
            name = str(value.name)
            if name in arrays:
                graph.initializer.append(onnx.numpy_helper.from_array(arrays[name], name))
            else:
                graph.input.append(described(name, types.get(name, (None, None))))
        graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in node.outputs if v.name)
        proto = onnx.ModelProto(graph=graph, ir_version=onnx.IR_VERSION)
        for domain, version in self._model.opset_imports.items():
            proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        try:
            found = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output
        except Exception as error:  # best effort: what it cannot give stays unknown
            _log.debug("shape inference failed at %s: %s", node.name, error)
            return {}
        return {info.name: type_of(info) for info in found}

    def computed(self, node: ir.Node, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of a node that reads ``arrays`` alone, if they are numbers and few."""
        names = [str(value.name) for value in _read(node)]
        known = operator(node.op_type)
        if (
            not arrays.keys() >= set(names)
            or known.random
            or known.control_flow
            or "kernel_shape" in node.attributes  # windows may be of any size
            or any(arrays[name].dtype.kind not in _NUMBERS for name in names)
        ):
            return {}
        shapes = [shape for shape, _ in self.inferred(node, {}, arrays).values()]
        if not shapes or not all(s is not None and math.prod(s) <= SMALL for s in shapes):
            return {}
        try:
            from normswap.graph.onnx.reference import Reference  # many files compute no sizes

            step = Reference(node, self._model.opset_imports, double=False)
            results = step.run([arrays[name] for name in step.reads])
        except Exception as error:  # an operator may raise anything; then this stays unknown
            _log.debug("%s cannot be computed: %s", node.name, error)
            return {}
        written = zip(step.writes, results, strict=True)
        tensors = {name: array for name, array in written if isinstance(array, np.ndarray)}
        return {name: array for name, array in tensors.items() if array.size <= SMALL}

    def run(
        self, node: ir.Node, types: Mapping[str, Type], arrays: Mapping[str, Array]
    ) -> dict[str, Type]:
        """The types of the outputs from a run of the node on zeros.

        On ones where zeros give nothing, such as for the positions of what is not zero.
        """
        reads = {str(value.name): value for value in _read(node)}
        found = {n: (a.shape, a.dtype) for n, a in arrays.items()}
        known = {name: found.get(name) or types.get(name, (None, None)) for name in reads}
        count = 0
        for shape, dtype in known.values():
            if shape is None or dtype is None or dtype.kind in "OSU" or 0 in shape:
                return {}
            count += math.prod(shape)
        outputs = [value for value in node.outputs if value.name]
        if count > min(_READ, self._left) or repeats_a_body(node) or operator(node.op_type).random:
            return {}
        self._left -= count
        held = {n for n, v in reads.items() if v.const_value is not None and n not in arrays}
        inputs: list[Input] = [
            (reads[name], dtype, shape)
            for name, (shape, dtype) in known.items()
            if name not in held
        ]
        for fill in (0, 1):
            feeds = [
                arrays[n] if (n := str(value.name)) in arrays else np.full(shape or (), fill, dtype)
                for value, dtype, shape in inputs
            ]
            try:
                results = _bounded_run(self._model, inputs, outputs, feeds)
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                _log.debug("%s cannot be run for its shapes: %s", node.name, error)
                return {}
            if all(array.size for array in results):
                break
        pairs = zip(outputs, results, strict=True)
        return {str(value.name): (array.shape, array.dtype) for value, array in pairs}


def described(name: str, known: Type) -> onnx.ValueInfoProto:
    """What a message says of a value."""
    shape, dtype = known
    kind = 0 if dtype is None else int(ir.DataType.from_numpy(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def type_of(info: onnx.ValueInfoProto | None) -> Type:
    """The type that a message gives a value; (None, None) for what is no tensor."""
    if info is None or not info.type.HasField("tensor_type"):
        return None, None
    tensor = info.type.tensor_type
    dims = tensor.shape.dim
    known = tensor.HasField("shape") and all(
        dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims
    )
    return tuple(d.dim_value for d in dims) if known else None, numpy_dtype(tensor.elem_type)


def numpy_dtype(kind: int) -> np.dtype[Any] | None:
    """The dtype of ONNX's type number; None for no type, and for a number that is none."""
    try:
        return ir.DataType(kind).numpy() if kind else None
    except (ValueError, TypeError):
        return None


def _read(node: ir.Node) -> list[ir.Value]:
    """The values that a node or its bodies read, each once."""
    return list(dict.fromkeys(v for v in (*node.inputs, *captured_values(node)) if v is not None))


def _bounded_run(
    model: ir.Model, inputs: Sequence[Input], outputs: Sequence[ir.Value], arrays: Sequence[Array]
) -> list[Array]:
    import onnxruntime  # most files need no run

    _limit_memory()
    proto, fetched = slice_proto(model, inputs, outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    used = {entry.name for entry in session.get_inputs()}
    names = (str(value.name) for value, _, _ in inputs)
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if n in used}
    limits = onnxruntime.RunOptions()
    limits.log_severity_level = 4
    timer = threading.Timer(_SECONDS, setattr, (limits, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        results = session.run(fetched, feeds, limits)
        if not all(isinstance(result, np.ndarray) for result in results):
            raise TypeError("a result is no tensor")
        return list(results)
    finally:
        timer.cancel()


@functools.cache
def _limit_memory() -> None:
    """Makes the allocator of the sessions that ask for it, which refuses to take more."""
    import onnxruntime

    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    limit = onnxruntime.OrtArenaCfg({"max_mem": _MEMORY})
    onnxruntime.create_and_register_allocator(info, limit)
