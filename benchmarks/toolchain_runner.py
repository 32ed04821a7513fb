"""Converts a model with one toolchain and runs it; run as a file in the toolchain's environment.

    python toolchain_runner.py TOOLCHAIN REQUEST.json

The request has ``model`` (an ONNX file, or an ExportedProgram for executorch and coremltools),
``inputs`` (.npz: an array [runs, *shape] for each input), ``outputs`` (.npz to write, an array
[runs, *shape] for each output, in order), ``folder`` for what the converter leaves, ``options``,
and ``answer``, a file to write as JSON: ``version``, ``note``, and ``error`` where it failed.
Nothing but numpy and the toolchain is imported, for nothing else is there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], list[np.ndarray]]
Converted = tuple[Run | None, str]
"""What runs the converted model, None where it does not run here; and a note."""


def qnn(request: dict[str, Any]) -> Converted:
    """Qualcomm's simulator of the HTP. With ``whole`` a session that would leave anything to the
    CPU fails; without, the note says which operators it left."""
    import onnxruntime as ort
    import onnxruntime_qnn

    options = dict(request["options"])
    whole = options.pop("whole")
    ort.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == "qnn"]
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if whole:
        session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session_options.add_provider_for_devices(devices, {"backend_type": "htp", **options})
    session = ort.InferenceSession(request["model"], session_options)
    left: list[str] = []
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != "qnn":
            left += [node.op_type for node in part.get_nodes()]
    return lambda feeds: session.run(None, feeds), _on_cpu(left)


def openvino(request: dict[str, Any]) -> Converted:
    import openvino as ov

    core = ov.Core()
    model = core.compile_model(request["model"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: [np.array(v) for v in model(feeds).values()], ""


def mnn(request: dict[str, Any]) -> Converted:
    import MNN
    from MNN import expr

    target = str(Path(request["folder"], "model.mnn"))
    # What is under its mnnconvert, which installs a package with pip and sends reports home.
    converter = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    command = [sys.executable, "-c", converter, "-f", "ONNX", "--modelFile", request["model"]]
    said = _called([*command, "--MNNModel", target, "--bizCode", "normswap"])
    if not Path(target).is_file():
        line = _first(said, ("not support", "don't support", "error", "Not"))
        raise RuntimeError(re.sub(r"^\[[\d:]+\] :\d+: ", "", line))
    names = request["names"]
    module = MNN.nn.load_module_from_file(target, list(names["inputs"]), list(names["outputs"]))
    kinds = {"float32": expr.float, "int64": expr.int, "int32": expr.int}

    def run(feeds: Arrays) -> list[np.ndarray]:
        given = []
        for array in feeds.values():
            kind = kinds[array.dtype.name]
            array = array.astype(np.int32) if kind == expr.int else array
            given.append(expr.const(np.ascontiguousarray(array), array.shape, expr.NCHW, kind))
        results = module.forward(given)
        return [np.array(expr.convert(r, expr.NCHW).read()) for r in results]

    return run, ""


def ncnn(request: dict[str, Any]) -> Converted:
    import ncnn as library

    folder = Path(request["folder"])
    file = folder / "model.onnx"
    file.write_bytes(Path(request["model"]).read_bytes())
    kinds = {"float32": "f32", "int64": "i64"}
    feeds = np.load(request["inputs"])
    shapes = ["[" + ",".join(map(str, feeds[n].shape[1:])) + "]" for n in feeds.files]
    types = [kinds[feeds[n].dtype.name] for n in feeds.files]
    given = ",".join(s + t for s, t in zip(shapes, types, strict=True))
    said = _called([_pnnx(), str(file), f"inputshape={given}", "fp16=0"], folder)
    param = folder / "model.ncnn.param"
    if not param.is_file():
        raise RuntimeError(_first(said, ("error", "failed", "not support")))
    ignored = [line.split()[1] for line in said.splitlines() if line.startswith("ignore ")]
    if ignored:
        counts = ", ".join(f"{n} {op}" for op, n in Counter(dict.fromkeys(ignored, 1)).items())
        raise RuntimeError(f"pnnx leaves parameters of {counts} out: ncnn has no such layer")
    net = library.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(param)) or net.load_model(str(folder / "model.ncnn.bin")):
        raise RuntimeError("ncnn cannot load what pnnx wrote")

    def run(feeds: Arrays) -> list[np.ndarray]:
        extractor = net.create_extractor()
        for index, array in enumerate(feeds.values()):
            array = array[0] if array.dtype == np.float32 else array[0].astype(np.int32)
            extractor.input(f"in{index}", library.Mat(np.ascontiguousarray(array)).clone())
        results = []
        for index in range(len(request["names"]["outputs"])):
            failed, value = extractor.extract(f"out{index}")
            if failed:
                raise RuntimeError(f"ncnn does not compute out{index}")
            results.append(np.array(value)[None])
        return results

    return run, ""


def litert(request: dict[str, Any]) -> Converted:
    import onnx2tf
    from ai_edge_litert.interpreter import Interpreter

    names = request["names"]
    onnx2tf.convert(
        input_onnx_file_path=request["model"],
        output_folder_path=request["folder"],
        keep_shape_absolutely_input_names=list(names["inputs"]),
        non_verbose=True,
    )
    (file,) = Path(request["folder"]).glob("*_float32.tflite")
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    known = {_plain(detail["name"]): detail for detail in interpreter.get_input_details()}

    def run(feeds: Arrays) -> list[np.ndarray]:
        for name, array in feeds.items():
            detail = known[name]
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]))
        interpreter.invoke()
        return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]

    return run, ""


def _plain(name: str) -> str:
    """The name of an input as the ONNX file had it."""
    return name.removeprefix("serving_default_").split(":")[0]


def rknn(request: dict[str, Any]) -> Converted:
    """Rockchip's simulator of an RK3588, in half precision. The note says what its compiler left to
    the CPU."""
    from rknn.api import RKNN

    said = Path(request["folder"], "said.txt")
    tool = RKNN(verbose=True)
    failed = 0
    with _heard(said):
        tool.config(target_platform="rk3588")
        for step in (
            lambda: tool.load_onnx(model=request["model"]),
            lambda: tool.build(do_quantization=False),
            tool.init_runtime,
        ):
            try:
                failed = failed or step()
            except Exception as error:  # its text is a traceback
                raise RuntimeError(str(error).strip().splitlines()[-1]) from None
    lines = said.read_text(encoding="utf-8", errors="replace")
    if failed:
        raise RuntimeError(_first(_COLOUR.sub("", lines), ("unsupport", "not support", "E ")))
    cpu = [line.split() for line in lines.splitlines() if _PLACED.match(line)]
    left = [words[4] for words in cpu if words[6] == "CPU" and not words[4].endswith("Operator")]

    def run(feeds: Arrays) -> list[np.ndarray]:
        with _heard(said):
            given = list(feeds.values())
            formats = ["nchw" if array.ndim == 4 else "nhwc" for array in given]
            return [np.array(v) for v in tool.inference(inputs=given, data_format=formats)]

    return run, _on_cpu(left)


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLACED = re.compile(r"D RKNN: \[\S+\] \d+ +\w+ +\S+ +(CPU|NPU|GPU) ")


@contextlib.contextmanager
def _heard(file: Path) -> Iterator[None]:
    """What the process prints, of libraries in C too, goes into ``file``."""
    sys.stdout.flush()
    outputs = [os.dup(1), os.dup(2)]
    try:
        with file.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        yield
    finally:
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)


def executorch(request: dict[str, Any]) -> Converted:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.load(request["model"])
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    left = [
        str(node.target._op._schema.name).removeprefix("aten::")
        for node in edge.exported_program().graph.nodes
        if hasattr(node.target, "_op")
    ]
    file = Path(request["folder"], "model.pte")
    file.write_bytes(edge.to_executorch().buffer)
    method = Runtime.get().load_program(file).load_method("forward")

    def run(feeds: Arrays) -> list[np.ndarray]:
        results = method.execute([torch.from_numpy(array) for array in feeds.values()])
        return [result.numpy().copy() for result in results]

    return run, _on_cpu(left, "not in XNNPACK")


def coremltools(request: dict[str, Any]) -> Converted:
    import coremltools as ct
    import torch

    program = torch.export.load(request["model"]).run_decompositions({})
    converted = ct.convert(program, minimum_deployment_target=ct.target.iOS18)
    operations = converted._mil_program.functions["main"].operations
    kinds = Counter(op.op_type for op in operations)
    norms = [f"{n} {k}" for k, n in kinds.items() if "norm" in k]
    reductions = [f"{n} {k}" for k, n in kinds.items() if k.startswith("reduce")]
    return None, ", ".join([*norms, *reductions]) or "neither norms nor reductions"


TOOLCHAINS: dict[str, tuple[Callable[[dict[str, Any]], Converted], tuple[str, ...]]] = {
    "qnn": (qnn, ("onnxruntime-qnn", "onnxruntime")),
    "openvino": (openvino, ("openvino",)),
    "mnn": (mnn, ("MNN",)),
    "ncnn": (ncnn, ("ncnn", "pnnx")),
    "litert": (litert, ("onnx2tf", "ai-edge-litert")),
    "rknn": (rknn, ("rknn-toolkit2",)),
    "executorch": (executorch, ("executorch",)),
    "coremltools": (coremltools, ("coremltools",)),
}


def _on_cpu(operators: Iterable[str], where: str = "on the CPU") -> str:
    counts = Counter(operators)
    return f"{where}: " + ", ".join(f"{n} {op}" for op, n in counts.items()) if counts else ""


def _pnnx() -> str:
    """The program itself: its Python package wants torch."""
    spec = importlib.util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package pnnx is not installed")
    return str(Path(spec.origin).with_name("pnnx"))


def _called(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, errors="replace")
    return done.stdout + done.stderr


def _first(said: str, words: tuple[str, ...]) -> str:
    """The first line with one of ``words``, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    hits = [line for line in lines if any(word.lower() in line.lower() for word in words)]
    return (hits or lines[-1:] or ["it said nothing"])[0]


def _answer(name: str, request: dict[str, Any]) -> dict[str, str]:
    toolchain, packages = TOOLCHAINS[name]
    version = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    try:
        run, note = toolchain(request)
        if run is not None:
            given = np.load(request["inputs"])
            arrays = {key: given[key] for key in given.files}
            number = len(next(iter(arrays.values())))
            results = [run({k: v[i] for k, v in arrays.items()}) for i in range(number)]
            stacked = [np.stack(values) for values in zip(*results, strict=True)]
            np.savez(request["outputs"], *stacked)
    except Exception as error:  # whatever a toolchain raises is a finding
        text = " ".join(str(error).split()) or type(error).__name__
        return {"version": version, "note": "", "error": text[:400]}
    return {"version": version, "note": note, "error": ""}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    asked = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        answer = _answer(sys.argv[1], asked)
    Path(asked["answer"]).write_text(json.dumps(answer), encoding="utf-8")
