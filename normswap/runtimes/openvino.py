"""How OpenVINO compiles a model."""

from __future__ import annotations

import openvino

from normswap.runtimes import Compiled, Feeds, Outputs

CPU = "CPU"
# Lines that name a place in OpenVINO's sources, and headings.
_NOISE = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")


def compiled(model: bytes | str, threads: int | None = None, precise: bool = False) -> Compiled:
    """An ``.onnx`` file, or its contents, with the default options.

    On a CPU with bfloat16 instructions the default is to compute in bfloat16, and ``name`` says so;
    ``precise`` computes in float32. Raises RuntimeError where OpenVINO refuses the model.
    """
    properties: dict[str, int | str] = {"INFERENCE_PRECISION_HINT": "f32"} if precise else {}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    made = core.compile_model(core.read_model(model), CPU, properties)
    taken = {name for port in made.inputs for name in port.names}
    outputs = list(made.outputs)
    precision = made.get_property("INFERENCE_PRECISION_HINT").to_string()

    def run(feeds: Feeds) -> Outputs:
        results = made({name: feeds[name] for name in feeds if name in taken})
        return [results[output] for output in outputs]

    return Compiled(f"{runtime_name()} {CPU} {precision}", run)


def runtime_name() -> str:
    return f"openvino {openvino.__version__.partition('-')[0]}"


def reason(error: BaseException) -> str:
    """The message of an exception of OpenVINO, on one line."""
    lines = [line.strip("- ") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_NOISE)]
    return next(iter([*telling, *filter(None, lines)]), type(error).__name__)
