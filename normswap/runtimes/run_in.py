"""``run_in``: a whole model in a runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from normswap.errors import NormswapError, first_line
from normswap.extras import install_command
from normswap.io.save import save
from normswap.model import Model
from normswap.runtimes import Compiled, Feeds, Outputs
from normswap.runtimes.process import RUN_SECONDS, Process, RuntimeFailed

SUFFIXES = {"torch": ".pt2", "onnxruntime": ".onnx", "openvino": ".onnx"}
"""The runtimes, each with the kind of file that it loads."""


def default_runtime(model: Model) -> str:
    return "torch" if model.kind == "fx" else "onnxruntime"


def fits(model: Model, runtime: str) -> bool:
    """Whether the model can be converted for the runtime: torch takes no ONNX model."""
    return runtime != "torch" or model.kind == "fx"


def check_runtime(runtime: str) -> None:
    """Raises NormswapError for a runtime that is unknown or not installed."""
    if runtime not in SUFFIXES:
        raise NormswapError(f"--runtime: '{runtime}' is none of {', '.join(SUFFIXES)}")
    if importlib.util.find_spec(runtime) is None:
        raise NormswapError(f"--runtime {runtime}: it is not installed; {install_command(runtime)}")


def no_torch_graph(model: Model) -> NormswapError:
    return NormswapError(
        f"{model.name}: an ONNX model has no torch graph to run; take --runtime onnxruntime"
    )


@contextlib.contextmanager
def run_in(model: Model, runtime: str, limit: float = RUN_SECONDS) -> Iterator[Compiled]:
    """The model in 'torch', 'onnxruntime' or 'openvino', usable until the block ends.

    torch runs in this process, as in inference. The others run in a process of their own, which may
    crash, and which is ended where it takes more than ``limit`` seconds to load the model or for a
    run: a torch model goes through torch's ONNX exporter, and OpenVINO computes in float32
    whatever the CPU offers. All use as many threads as torch.

    Raises NormswapError for a runtime that is unknown or not installed, for an ONNX model in torch
    and a limit that is no time; RuntimeFailed where the runtime refuses the model, and at each run
    that fails.

    Example::

        with run_in(model, "onnxruntime") as compiled:
            outputs = compiled({"pixel_values": images})
    """
    check_runtime(runtime)
    if not fits(model, runtime):
        raise no_torch_graph(model)
    if runtime == "torch":
        yield _in_torch(model)
        return
    with Process(runtime, model.name, limit) as process:
        with scratch_files(model) as file:
            process.load(file(SUFFIXES[runtime]), torch.get_num_threads(), precise=True)
        yield Compiled(
            process.name, lambda feeds: process.run({n: np.asarray(a) for n, a in feeds.items()})
        )


@contextlib.contextmanager
def scratch_files(model: Model) -> Iterator[Callable[[str], Path]]:
    """Yields a function from a suffix (.onnx, .pt2) to a file of the model, written on first use.

    The files are deleted at the end; a process that has mapped them keeps their contents. The
    function raises NormswapError where the model cannot be written in that format.
    """
    # Windows cannot delete mapped files: they stay until the temporary folder is cleaned up.
    with tempfile.TemporaryDirectory(prefix="normswap-", ignore_cleanup_errors=True) as folder:

        def file(suffix: str) -> Path:
            path = Path(folder) / f"model{suffix}"
            if not path.exists():
                try:
                    save(model, path)
                except NormswapError as error:
                    if not str(error).startswith(str(path)):
                        raise
                    room = f"{tempfile.gettempdir()} cannot hold a copy of it"
                    raise NormswapError(
                        f"{model.name}: {room} to run; set TMPDIR to another folder"
                    ) from error
            return path

        yield file


def _in_torch(model: Model) -> Compiled:
    runner = model.runner()

    def run(feeds: Feeds) -> Outputs:
        try:
            with torch.inference_mode():
                return runner([np.asarray(feeds[spec.name]) for spec in model.inputs])
        except MemoryError:
            raise
        except Exception as error:  # torch's exceptions share no base class
            raise RuntimeFailed(
                f"{model.name}: torch cannot run it: {first_line(error)}"
            ) from error

    return Compiled(f"torch {torch.__version__}", run)
