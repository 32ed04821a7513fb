"""How ONNX Runtime compiles a model."""

from __future__ import annotations

import re

import onnxruntime

from normswap.runtimes import Compiled, Feeds, Outputs

CPU = "CPUExecutionProvider"
_NOISE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?")


def compiled(
    model: bytes | str, threads: int | None = None, precise: bool = False, provider: str = CPU
) -> Compiled:
    """An ``.onnx`` file, or its contents, with the default options, all optimizations included.

    ``precise`` changes nothing: float32 is float32. Raises an exception of ONNX Runtime's where it
    refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, not printed
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    taken = {i.name for i in session.get_inputs()}

    def run(feeds: Feeds) -> Outputs:
        return list(session.run(None, {name: feeds[name] for name in feeds if name in taken}))

    return Compiled(f"{runtime_name()} {provider}", run)


def runtime_name() -> str:
    return f"onnxruntime {onnxruntime.__version__}"


def reason(error: BaseException) -> str:
    """The message of an exception of ONNX Runtime, on one line."""
    return _NOISE.sub("", " ".join(str(error).split())) or type(error).__name__
