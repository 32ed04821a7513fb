"""``run_in``: a model as a whole in a runtime."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array, Runner
from normswap.model import Model
from normswap.runtimes.errors import RuntimeFailed
from normswap.runtimes.files import scratch_files
from normswap.runtimes.process import Process

SUFFIXES = {"torch": ".pt2", "onnxruntime": ".onnx", "openvino": ".onnx"}
"""The runtimes, each with the kind of file that it loads."""


class Run(Protocol):
    """``name``: of the runtime with its version. Called with arrays by input name, it returns the
    outputs in the order of ``Model.output_names``; raises RuntimeFailed."""

    @property
    def name(self) -> str: ...
    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]: ...


def default_runtime(model: Model) -> str:
    return "torch" if model.kind == "fx" else "onnxruntime"


def fits(model: Model, runtime: str) -> bool:
    """Whether the model can be made for the runtime: torch takes no ONNX model."""
    return runtime != "torch" or model.kind == "fx"


def check_runtime(runtime: str) -> None:
    """Raises NormswapError for a runtime that is unknown or not installed."""
    if runtime not in SUFFIXES:
        raise NormswapError(f"--runtime: '{runtime}' is none of {', '.join(SUFFIXES)}")
    if importlib.util.find_spec(runtime) is None:
        raise NormswapError(
            f'--runtime {runtime}: it is not installed; pip install "normswap[{runtime}]"'
        )


def no_torch_graph(model: Model) -> NormswapError:
    return NormswapError(
        f"{model.name}: an ONNX model has no torch graph to run; take --runtime onnxruntime"
    )


@contextlib.contextmanager
def run_in(model: Model, runtime: str) -> Iterator[Run]:
    """The model in 'torch', 'onnxruntime' or 'openvino', to be called as long as the block lasts.

    torch runs here, as in inference. The others run in a process of their own, which may crash: a
    torch model goes through torch's ONNX exporter, and OpenVINO computes in float32 whatever the
    CPU offers. All use as many threads as torch.

    Raises NormswapError for a runtime that is unknown or not installed, and for an ONNX model in
    torch; RuntimeFailed where the runtime refuses the model.
    """
    check_runtime(runtime)
    if not fits(model, runtime):
        raise no_torch_graph(model)
    if runtime == "torch":
        yield _InTorch(model, model.runner(), f"torch {torch.__version__}")
        return
    with Process(runtime, model.name) as process:
        with scratch_files(model) as file:
            process.load_precisely(file(SUFFIXES[runtime]), torch.get_num_threads())
        yield _Elsewhere(process.name, process.run)


@dataclass(frozen=True)
class _InTorch:
    model: Model
    run: Runner
    name: str

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            with torch.inference_mode():
                return self.run([np.asarray(feeds[spec.name]) for spec in self.model.inputs])
        except MemoryError:
            raise
        except Exception as error:  # torch's exceptions share no base class
            raise RuntimeFailed(
                f"{self.model.name}: torch cannot run it: {first_line(error)}"
            ) from error


@dataclass(frozen=True)
class _Elsewhere:
    name: str
    run: Callable[[Mapping[str, Array]], list[Array]]

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        return self.run({name: np.asarray(array) for name, array in feeds.items()})
