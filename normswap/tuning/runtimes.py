"""The runtimes that forms of an operator are measured in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from normswap.errors import NormswapError
from normswap.graph.graph import Array

TARGETS = ("onnxruntime-cpu", "onnxruntime-cuda", "openvino", "generic")
"""What a model can be made for."""

Compiled = Callable[[Mapping[str, Array]], list[Array]]


@dataclass(frozen=True)
class Runtime:
    """``name`` with its version; ``compile`` makes a function of inputs by name from a model, and
    raises NormswapError where the runtime refuses it."""

    name: str
    compile: Callable[[onnx.ModelProto], Compiled]


def runtime_of(target: str) -> Runtime:
    """The runtime of a target, with its default options.

    Raises NormswapError for a target that cannot run on this machine.
    """
    if target == "onnxruntime-cpu":
        return _onnxruntime("CPUExecutionProvider")
    if target == "onnxruntime-cuda":
        return _onnxruntime("CUDAExecutionProvider")
    if target == "openvino":
        return _openvino()
    raise NormswapError("--tune measures on a runtime: name one of this machine with --target")


def _onnxruntime(provider: str) -> Runtime:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise NormswapError(
            f"--tune: ONNX Runtime has no {provider} here; run it on the machine that the model "
            f"is made for, or leave --tune out"
        )

    def compiled(proto: onnx.ModelProto) -> Compiled:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, not printed
        try:
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=[provider]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise NormswapError(f"ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error
        return lambda feeds: list(session.run(None, dict(feeds)))

    return Runtime(f"onnxruntime {onnxruntime.__version__} {provider}", compiled)


def _openvino() -> Runtime:
    try:
        import openvino
    except ImportError as error:
        raise NormswapError(
            '--tune --target openvino: needs OpenVINO; pip install "normswap[openvino]"'
        ) from error
    core = openvino.Core()

    def compiled(proto: onnx.ModelProto) -> Compiled:
        try:
            model = core.compile_model(core.read_model(proto.SerializeToString()), "CPU")
        except RuntimeError as error:
            raise NormswapError(f"OpenVINO refuses it: {str(error).splitlines()[0]}") from error
        outputs = list(model.outputs)

        def run(feeds: Mapping[str, Array]) -> list[Array]:
            results = model(dict(feeds))
            return [results[output] for output in outputs]

        return run

    return Runtime(f"openvino {openvino.__version__} CPU", compiled)
