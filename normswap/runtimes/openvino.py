"""How OpenVINO compiles a model."""

from __future__ import annotations

from typing import Any

import openvino

from normswap.runtimes.compiled import Compiled, Feeds, Outputs

CPU = "CPU"
# Where in its sources something was found, and headings.
_NOISE = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")


def compiled(model: bytes | str, threads: int | None = None) -> Compiled:
    """An ``.onnx`` file, or its contents, with the default options: on a CPU that has bfloat16
    instructions the default is to compute in bfloat16, and ``name`` says so.

    Raises RuntimeError where OpenVINO refuses the model.
    """
    return _compiled(model, threads, {})


def compiled_precisely(model: bytes | str, threads: int | None = None) -> Compiled:
    """The same in float32 whatever the CPU has."""
    return _compiled(model, threads, {"INFERENCE_PRECISION_HINT": "f32"})


def runtime_name() -> str:
    return f"openvino {openvino.__version__.partition('-')[0]}"


def reason(error: BaseException) -> str:
    """What an exception of OpenVINO's says, on one line."""
    lines = [line.strip("- ") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_NOISE)]
    return next(iter([*telling, *filter(None, lines)]), type(error).__name__)


def _compiled(model: bytes | str, threads: int | None, properties: dict[str, Any]) -> Compiled:
    if threads is not None:
        properties = {**properties, "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    made = core.compile_model(core.read_model(model), CPU, properties)
    taken = {name for port in made.inputs for name in port.names}
    outputs = list(made.outputs)
    precision = made.get_property("INFERENCE_PRECISION_HINT").to_string()

    def run(feeds: Feeds) -> Outputs:
        results = made({name: feeds[name] for name in feeds if name in taken})
        return [results[output] for output in outputs]

    return Compiled(f"{runtime_name()} {CPU} {precision}", run)
