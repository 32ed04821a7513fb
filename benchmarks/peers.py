"""Tools that look for norms in ONNX files, what each makes of a file, and a process for that."""

from __future__ import annotations

import importlib.metadata
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Array = np.ndarray
Feeds = dict[str, Array]

OPERATORS = (
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "EmbedLayerNormalization",
    "RMSNormalization",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "GroupNorm",
    "SkipGroupNorm",
)


@dataclass
class Truth:
    """A norm that is there: its values on the first probe, and what it is, as far as known."""

    name: str
    value: Array
    kind: str
    epsilon: float
    role: str = ""
    tower: str = ""


@dataclass
class Case:
    """A file with its norms and probes: inputs, true outputs (NaN where none is known) and by how
    much an output may be off, of its largest value.

    ``family``: what the model is, in the words of onnxruntime.transformers.
    """

    name: str
    form: str
    proto: onnx.ModelProto
    truths: list[Truth] = field(default_factory=list)
    probes: list[tuple[Feeds, dict[str, Array], dict[str, float]]] = field(default_factory=list)
    family: str = "bert"
    note: str = ""

    @property
    def half(self) -> bool:
        kinds = [i.type.tensor_type.elem_type for i in self.proto.graph.input]
        kinds += [t.data_type for t in self.proto.graph.initializer]
        return onnx.TensorProto.FLOAT16 in kinds

    @property
    def tolerance(self) -> float:
        return 2e-2 if self.half else 1e-3


@dataclass
class Answer:
    """What a tool makes of a file: ``proto``, with norms at the values ``norms``.

    ``told``: kind, role, tower and epsilon of each norm by its value, from a tool that tells them.
    """

    proto: onnx.ModelProto
    norms: list[str]
    told: dict[str, tuple[str, str, str, float]] = field(default_factory=dict)


# -- the tools -----------------------------------------------------------------------------------


def _as_it_is(proto: onnx.ModelProto, _: str) -> onnx.ModelProto:
    return proto


def _normswap_locate(proto: onnx.ModelProto, _: str) -> Answer:
    import onnx_ir as ir

    import normswap

    sites = normswap.locate(normswap.load(ir.serde.deserialize_model(proto)))
    told = {s.output: (s.kind, s.role, s.tower, s.epsilon) for s in sites}
    return Answer(proto, [s.output for s in sites], told)


def _normswap_fused(proto: onnx.ModelProto, _: str) -> onnx.ModelProto:
    import onnx_ir as ir

    import normswap

    result = normswap.swap(normswap.load(ir.serde.deserialize_model(proto)), to="fused")
    return ir.serde.serialize_model(result.model.to_onnx_ir())


def _onnxruntime(level: str) -> Callable[[onnx.ModelProto, str], onnx.ModelProto]:
    def optimised(proto: onnx.ModelProto, _: str) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            _session(proto, level, optimized_model_filepath=str(path))
            model: onnx.ModelProto = onnx.load(path)
            return model

    return optimised


def _onnxruntime_transformers(proto: onnx.ModelProto, family: str) -> onnx.ModelProto:
    from onnxruntime.transformers.optimizer import optimize_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        return optimize_model(str(path), model_type=family, only_onnxruntime=False).model


def _onnxscript(proto: onnx.ModelProto, _: str) -> onnx.ModelProto:
    """Its optimizer, then its LayerNorm rules and the RMSNorm rules for the file's opset."""
    import onnx_ir as ir
    import onnxscript.optimizer
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization as for_ort
    from onnxscript.rewriter.rules.fusion._layer_norm import fuse_layer_normalization
    from onnxscript.rewriter.rules.fusion._rms_normalization import fuse_rms_normalization

    model = ir.serde.deserialize_model(proto)
    onnxscript.optimizer.optimize(model)
    opset = model.opset_imports[""]
    if opset >= 17:  # the rule would write the operator into older files too
        fuse_layer_normalization(model)
    (fuse_rms_normalization if opset >= 23 else for_ort)(model)
    return ir.serde.serialize_model(model)


def _onnxscript_raised(proto: onnx.ModelProto, family: str) -> onnx.ModelProto:
    """The same with older files converted to opset 18 first, which its rules are written for."""
    import onnx_ir as ir
    from onnxscript import version_converter

    if next(o.version for o in proto.opset_import if not o.domain) < 18:
        model = ir.serde.deserialize_model(proto)
        version_converter.convert_version(model, 18, fallback=True)
        proto = ir.serde.serialize_model(model)
    return _onnxscript(proto, family)


def _onnxslim(proto: onnx.ModelProto, _: str) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(proto)


def _onnxsim(proto: onnx.ModelProto, _: str) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(proto)[0]


AS_IT_IS, LOCATE = "the file as it is", "normswap locate"
TOOLS: dict[str, Callable[[onnx.ModelProto, str], onnx.ModelProto | Answer]] = {
    AS_IT_IS: _as_it_is,
    LOCATE: _normswap_locate,
    "normswap fused": _normswap_fused,
    "ORT basic": _onnxruntime("ORT_ENABLE_BASIC"),
    "ORT extended": _onnxruntime("ORT_ENABLE_EXTENDED"),
    "ORT all": _onnxruntime("ORT_ENABLE_ALL"),
    "ORT transformers": _onnxruntime_transformers,
    "onnxscript": _onnxscript,
    "onnxscript at 18": _onnxscript_raised,
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
}
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxslim", "onnxsim")


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    return {name: found[name] for name in PACKAGES if name in found}


# -- one tool on one file ------------------------------------------------------------------------


def judged(tool: str, case: Case) -> dict[str, Any]:
    """What ``tool`` finds in the file, and whether its file still computes the same.

    Raises whatever the tool raises.
    """
    start = time.perf_counter()
    said = TOOLS[tool](case.proto, case.family)
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 3)}
    if not isinstance(said, Answer):
        said = Answer(said, [n.output[0] for n in said.graph.node if n.op_type in OPERATORS])
    try:
        values = run(said.proto, case.probes[0][0], said.norms)
        same = tool in (AS_IT_IS, LOCATE)
        row["error"] = 0.0 if same else _error(said.proto, case)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        return row | {"problem": f"broken: {first_line(error)}"}
    at = {t.name: [n for n in said.norms if _alike(values[n], t, case)] for t in case.truths}
    known = set(itertools.chain(*at.values()))
    row["missed"] = [name for name, found in at.items() if not found]
    row["strangers"] = [name for name in said.norms if name not in known]
    row["kinds"] = [told[0] for name in row["strangers"] if (told := said.told.get(name))]
    row["misjudged"] = _misjudged(said, case.truths, at)
    return row


def run(proto: onnx.ModelProto, feeds: Feeds, names: Sequence[str] = ()) -> dict[str, Array]:
    """The outputs and the values ``names``, by ONNX Runtime without its optimizer."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    outputs = {o.name: o.name for o in proto.graph.output}
    for name in dict.fromkeys(names):
        outputs[name] = f"{name}__shown"
        shown.graph.node.append(onnx.helper.make_node("Identity", [name], [outputs[name]]))
        shown.graph.output.append(onnx.ValueInfoProto(name=outputs[name]))
    session = _session(shown, "ORT_DISABLE_ALL")
    taken = {i.name for i in session.get_inputs()}
    arrays = session.run(list(outputs.values()), {k: v for k, v in feeds.items() if k in taken})
    return dict(zip(outputs, arrays, strict=True))


def _session(proto: onnx.ModelProto, level: str, **settings: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def _alike(value: Array, truth: Truth, case: Case) -> bool:
    """Whether a value is the norm's, with its axes in whatever order."""
    a, b = (np.sort(np.asarray(v, np.float64), None) for v in (value, truth.value))
    return a.size == b.size and bool(np.abs(a - b).max() <= case.tolerance * np.abs(b).max())


def _error(proto: onnx.ModelProto, case: Case) -> float:
    """The largest error of an output in units of the allowed one; infinite for a NaN."""
    worst = 0.0
    for feeds, expected, allowed in case.probes:
        values = run(proto, feeds)
        for name, array in expected.items():
            if name not in values or values[name].shape != array.shape:
                return float("inf")
            worst = max(worst, distance(values[name], array) / allowed[name])
    return worst


def distance(value: Array, expected: Array) -> float:
    """The largest error relative to the largest expected value, over what is known."""
    known = np.isfinite(expected)
    if not known.any():
        return 0.0
    a, b = value[known].astype(np.float64), expected[known].astype(np.float64)
    error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
    return float(error) if np.isfinite(error) else float("inf")


def _misjudged(said: Answer, truths: Sequence[Truth], at: dict[str, list[str]]) -> list[str]:
    """The found norms of which the tool tells what is not so."""
    wrong = []
    for truth in truths:
        for kind, role, tower, epsilon in (said.told[n] for n in at[truth.name] if n in said.told):
            # a file in half precision really has the epsilon rounded to it
            meant = (truth.epsilon, float(np.float16(truth.epsilon)))
            same = any(np.isclose(epsilon, e, rtol=1e-4, atol=1e-30) for e in meant)
            purpose = (role, tower) if truth.role else ("", "")
            if (kind, *purpose) != (truth.kind, truth.role, truth.tower) or not same:
                wrong.append(f"{truth.name}: {kind} {role} {tower} {epsilon:g}")
    return wrong


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


# -- the process ---------------------------------------------------------------------------------


class Guard:
    """Calls ``function`` in a process of its own, so that what it kills or hangs is not this one.

    A context manager; each call gives the result and '', or None and what went wrong.
    """

    def __init__(self, function: Callable[..., Any], seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, *arguments: Any) -> tuple[Any, str]:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(arguments)
            if self._pipe.poll(self._seconds):
                result: tuple[Any, str] = self._pipe.recv()
                return result
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode
            self._stop()
            return None, f"crashed: signal {-status}" if status < 0 else f"crashed: exit {status}"
        self._stop()
        return None, f"crashed: no answer in {self._seconds:g} s"

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not end the pipe

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, function: Callable[..., Any]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # C++ prints too
        os.dup2(nowhere, stream.fileno())
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        result: tuple[Any, str]
        try:
            result = function(*arguments), ""
        except ModuleNotFoundError as error:
            result = None, f"not installed: {error.name}"
        except Exception as error:
            result = None, f"refused: {type(error).__name__}: {first_line(error)}"
        pipe.send(result)
