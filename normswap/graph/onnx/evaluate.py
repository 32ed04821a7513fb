"""Runs a slice of an ONNX graph: with ONNX Runtime in its own dtypes, or with onnx's reference
evaluator in float64.

ONNX Runtime's graph optimizer is off: it changes results silently (it fuses look-alikes of
LayerNormalization), and norms are proven with these results.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from normswap.errors import Endless, NormswapError, first_line
from normswap.graph.graph import Array, Runner, is_floating, topological
from normswap.graph.onnx import nodes
from normswap.graph.onnx.nodes import captured_values
from normswap.graph.onnx.results import Result, as_arrays, in_double
from normswap.graph.onnx.segments import Input, release, segmented
from normswap.graph.operators import operator

if TYPE_CHECKING:
    from normswap.graph.onnx.reference import Reference

_LOOK = 0.1  # seconds between two looks at how long a run takes
_INLINE_LIMIT = 1_500_000_000  # bytes; protobuf ends at 2 GiB
_KEPT_LIMIT = 500_000_000  # bytes of converted constants that a float64 runner keeps
SESSION_THREADS: ContextVar[int] = ContextVar("session_threads", default=0)
"""Threads of a session that is opened; 0 is ONNX Runtime's own choice, one for each core. Those of
many small sessions cost more than they do, and wait busily."""
DtypeOf = Callable[[str], np.dtype[Any] | None]


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

    Of a graph with many weights it holds those of one segment at a time (``segments.py``).
    Raises ValueError as ``slice_parts`` does, and NormswapError where the runtime refuses the
    slice.
    """
    parts = slice_parts([value for value, _, _ in inputs], outputs)
    if (run_segments := segmented(model, inputs, outputs, parts, runtime_runner)) is not None:
        return run_segments
    proto, fetched = _proto(model, inputs, outputs, parts)
    session = runtime_session(proto)
    names = [str(value.name) for value, _, _ in inputs]
    loops = any(operator(node.op_type).repeats for node in _all_nodes(proto.graph))

    def run(arrays: Sequence[Array]) -> list[Array]:
        used = {i.name for i in session.get_inputs()}
        feeds = {n: a for n, a in zip(names, arrays, strict=True) if n in used}
        try:
            if loops:
                return _run_with_loops(session, fetched, feeds)
            return list(session.run(fetched, feeds))
        except Exception as error:
            raise NormswapError(f"ONNX Runtime fails: {first_line(error)}") from error

    return run


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _all_nodes(body)


def _run_with_loops(session: Any, fetched: list[str], feeds: Mapping[str, Array]) -> list[Array]:
    """``session.run``, stopped after ``LOOP_SECONDS`` of work. Raises Endless then."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    worked, over = nodes.work_of_this_thread(), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK):
            if worked() > nodes.LOOP_SECONDS:
                options.terminate = True
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        return list(session.run(fetched, feeds, options))
    except Exception as error:
        if options.terminate:
            raise Endless(nodes.endless()) from error
        raise
    finally:
        over.set()


def slice_proto(
    model: ir.Model, inputs: Sequence[Input], outputs: Sequence[ir.Value]
) -> tuple[onnx.ModelProto, list[str]]:
    """A slice as a model of its own, and the names of its outputs there.

    Raises ValueError as ``slice_parts`` does.
    """
    parts = slice_parts([value for value, _, _ in inputs], outputs)
    return _proto(model, inputs, outputs, parts)


def _proto(
    model: ir.Model,
    inputs: Sequence[Input],
    outputs: Sequence[ir.Value],
    parts: tuple[Sequence[ir.Node], Sequence[ir.Value]],
) -> tuple[onnx.ModelProto, list[str]]:
    """``slice_proto`` of a slice of these ``parts``."""
    computed, constants = parts
    graph = onnx.GraphProto(name="slice")
    graph.node.extend(ir.serde.serialize_node(node) for node in computed)
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
    dtype_of: DtypeOf,
    left_out: set[str],
) -> Runner:
    """The same by onnx's reference evaluator, node by node, with everything floating in float64.

    An operator that the evaluator lacks is run by ONNX Runtime, in the dtypes of the values
    that it reads (``dtype_of`` their names); its own name is then added to ``left_out``.
    Raises ValueError as ``slice_parts`` does, and NormswapError for an operator that neither runs.
    """
    return _stepwise(model, inputs, outputs, _Doubles(model, dtype_of, left_out))


def reference_runner(
    model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> Runner:
    """The same in the values' own dtypes. Raises as ``double_runner`` does."""
    return _stepwise(model, inputs, outputs, _Own(model))


class _Own:
    """How nodes are computed: in the dtypes of what they read."""

    double = False

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    def convert(self, result: Result) -> Result:
        return as_arrays(result)

    def for_runtime(self, name: str, result: Result) -> Result:
        """What a node reads, by the value's name, as ONNX Runtime is to get it."""
        return result

    def left(self, node: ir.Node, results: Sequence[Result]) -> None:
        """Takes note of a node that ONNX Runtime has run, and of what it read and yielded."""


class _Doubles(_Own):
    """The same with everything floating in float64."""

    double = True

    def __init__(self, model: ir.Model, dtype_of: DtypeOf, left_out: set[str]) -> None:
        super().__init__(model)
        self._dtype_of, self._left_out = dtype_of, left_out

    def convert(self, result: Result) -> Result:
        return in_double(result)

    def for_runtime(self, name: str, result: Result) -> Result:
        wide = result.dtype == np.float64
        return result.astype(self._dtype_of(name) or np.float32) if wide else result

    def left(self, node: ir.Node, results: Sequence[Result]) -> None:
        if any(is_floating(array.dtype) for array in results):
            self._left_out.add(f"{node.domain or 'ai.onnx'}.{node.op_type}")


class _Step:
    """One node: by the reference evaluator, else in ONNX Runtime."""

    def __init__(self, node: ir.Node, kind: _Own) -> None:
        from normswap.graph.onnx.reference import Reference  # many files need no evaluation

        self._node, self._kind = node, kind
        self._reference: Reference | None = None
        with contextlib.suppress(NormswapError):
            self._reference = Reference(node, kind.model.opset_imports, kind.double)
        self._runtime: Runner | None = None
        read = [v for v in (*node.inputs, *captured_values(node)) if v is not None]
        self._read = {str(value.name): value for value in read}
        self.reads = list(self._read)
        self.writes = [str(value.name) for value in node.outputs if value.name]

    def run(self, results: list[Result]) -> list[Result]:
        if self._reference is None:
            return self._run_in_runtime(results)
        try:
            return self._reference.run(results)
        except NormswapError as error:
            try:
                return self._run_in_runtime(results)
            except (NormswapError, ValueError, AttributeError):
                raise error from None

    def _run_in_runtime(self, results: list[Result]) -> list[Result]:
        """Raises NormswapError where ONNX Runtime refuses the node."""
        pairs = zip(self.reads, results, strict=True)
        fed = [self._kind.for_runtime(name, result) for name, result in pairs]
        if self._runtime is None:
            values = zip(self._read.values(), fed, strict=True)
            given: list[Input] = [(value, array.dtype, None) for value, array in values]
            written = [value for value in self._node.outputs if value.name]
            self._runtime = runtime_runner(self._kind.model, given, written)
        found = list(self._runtime(fed))
        self._kind.left(self._node, [*fed, *found])
        return [self._kind.convert(result) for result in found]


def _stepwise(
    model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], kind: _Own
) -> Runner:
    computed, held = slice_parts(inputs, outputs)
    constants = {str(value.name): value for value in [*held, *outputs]}
    steps = [_Step(node, kind) for node in computed]
    last: dict[str, int] = {name: i for i, step in enumerate(steps) for name in step.reads}
    wanted = [str(v.name) for v in outputs]
    kept: dict[str, Array] = {}  # constants, so that many runs convert them once
    room = [_KEPT_LIMIT]

    def constant(name: str) -> Array:
        if name in kept:
            return kept[name]
        tensor = constants[name].const_value
        assert tensor is not None  # else it would be an input or the result of a step
        array: Array = kind.convert(_as_fed(tensor))
        release(tensor)
        if array.nbytes <= room[0]:
            kept[name] = array
            room[0] -= array.nbytes
        return array

    def run(arrays: Sequence[Array]) -> list[Array]:
        known = {str(v.name): kind.convert(a) for v, a in zip(inputs, arrays, strict=True)}

        def load(name: str) -> Result:
            return known[name] if name in known else constant(name)

        for index, step in enumerate(steps):
            results = step.run([load(name) for name in step.reads])
            known.update(zip(step.writes, results, strict=True))
            for name in step.reads:
                if last[name] == index and name not in wanted:
                    known.pop(name, None)
        return [load(name) for name in wanted]

    return run


def _as_fed(tensor: ir.TensorProtocol) -> Array:
    """The array of a constant as it would be fed: texts are text."""
    array = tensor.numpy()
    return np.array(array, np.str_).astype(object) if array.dtype == object else array


def _tensor(value: ir.Value) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    proto = onnx.TensorProto(name=str(value.name), data_type=int(tensor.dtype))
    proto.dims.extend(tensor.shape.numpy())
    proto.raw_data = tensor.tobytes()
    return proto


def runtime_session(proto: onnx.ModelProto) -> Any:
    """A session of ONNX Runtime on the CPU that changes nothing of the graph.

    Raises NormswapError where the runtime refuses it.
    """
    import onnxruntime  # proofs and sizes need none

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised, not printed
    options.intra_op_num_threads = SESSION_THREADS.get()
    options.enable_cpu_mem_arena = False  # it keeps what a run took, and many slices are open
    try:
        return _session(proto, options)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise NormswapError(f"ONNX Runtime refuses the graph: {first_line(error)}") from error


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
