"""What a model can be made for, and the runtimes of this machine that measure forms for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import onnx

from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.lowering.capability_files import capabilities_of, known_targets
from normswap.options import check_choices, option
from normswap.runtimes import Compiled

_MEASURED = ("onnxruntime-cpu", "onnxruntime-cuda", "openvino", "generic")
TARGETS = (*_MEASURED, *(name for name in known_targets() if name not in _MEASURED))
"""What a model can be made for, beside what a capability file describes."""


@dataclass(frozen=True)
class Lowering:
    """What a model is made for, and whether forms and kernels are measured on this machine.

    Attributes:
        target: one of ``TARGETS``, for a version of it as in 'onnxruntime-cpu@1.24', or a
            capability file (.toml). None is 'generic' for an ONNX graph, and torch itself for a
            torch graph.
        kernels: for a torch graph: let norms run as the kernels of ``normswap.lowering.kernels``,
            which work in place. A ``.pt2`` with them needs normswap where it is loaded.
        tune: measure the forms of every norm on this machine, and take what wins; of a torch
            graph the kernels.

    Raises:
        NormswapError: another target, a file that is none, and kernels for a target.

    Examples:
        >>> swap(model, Fused(), lowering=Lowering("onnxruntime-cpu", tune=True))
    """

    target: str | None = option(
        None,
        f"what the model is made for: {', '.join(TARGETS)}, or a capability file (.toml). By "
        "default the standard operators of ONNX, or of torch.",
        metavar="TARGET",
    )
    kernels: bool = option(
        False,
        "torch models: norms as kernels that work in place. A .pt2 with them needs normswap where "
        "it is loaded.",
    )
    tune: bool = option(
        False, "measure the forms of every norm on this machine, and take what wins."
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_target(self.target)
        if self.kernels and self.target is not None:
            raise NormswapError("--kernels: are for torch itself; leave --target out")

    @property
    def asked(self) -> list[str]:
        """The fields that are not as by default."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


def check_target(target: str | None) -> None:
    """Raises NormswapError for what is no target, and for a capability file that is none."""
    if target in (None, "generic"):
        return
    assert target is not None
    name = target.partition("@")[0]
    if name not in TARGETS and not target.endswith(".toml"):
        raise NormswapError(f"--target: '{target}' is none of {', '.join(TARGETS)}, and no .toml")
    capabilities_of(target)


@dataclass(frozen=True)
class Runtime:
    """``name`` with its version; ``compile`` makes a function of inputs by name from a model, and
    raises NormswapError where the runtime refuses it."""

    name: str
    compile: Callable[[onnx.ModelProto], Compiled]


def runtime_of(target: str) -> Runtime:
    """The runtime of a target, with its default options, in this process.

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

    from normswap.runtimes import onnxruntime as runtime

    if provider not in onnxruntime.get_available_providers():
        raise NormswapError(
            f"--tune: ONNX Runtime has no {provider} here; run it on the machine that the model "
            f"is made for, or leave --tune out"
        )

    def compiled(proto: onnx.ModelProto) -> Compiled:
        try:
            return runtime.compiled(proto.SerializeToString(), provider=provider)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise NormswapError(f"ONNX Runtime refuses it: {runtime.reason(error)}") from error

    return Runtime(f"{runtime.runtime_name()} {provider}", compiled)


def _openvino() -> Runtime:
    try:
        from normswap.runtimes import openvino as runtime
    except ImportError as error:
        raise NormswapError(
            f"--tune --target openvino: needs OpenVINO; {install_command('openvino')}"
        ) from error

    def compiled(proto: onnx.ModelProto) -> Compiled:
        try:
            return runtime.compiled(proto.SerializeToString())
        except RuntimeError as error:
            raise NormswapError(f"OpenVINO refuses it: {runtime.reason(error)}") from error

    return Runtime(f"{runtime.runtime_name()} {runtime.CPU}", compiled)
