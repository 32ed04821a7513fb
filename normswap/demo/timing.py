"""The demo's models in torch and in ONNX Runtime, on one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from normswap.graph.graph import Array
from normswap.model import Model
from normswap.timing.paired import Run

THREADS = 1


@contextlib.contextmanager
def fixed_threads() -> Iterator[None]:
    """torch on ``THREADS`` threads: models this small gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def torch_runs(models: Mapping[str, Model], feeds: Mapping[str, Array]) -> Iterator[dict[str, Run]]:
    """Eager torch on torch models."""
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}

    def runner(model: Model) -> Run:
        module = model.to_inference()
        return lambda: module(**tensors)

    with fixed_threads(), torch.inference_mode():
        yield {name: runner(model) for name, model in models.items()}


@contextlib.contextmanager
def onnx_runs(files: Mapping[str, Path], feeds: Mapping[str, Array]) -> Iterator[dict[str, Run]]:
    """ONNX Runtime on files, with its default options but ``THREADS`` threads."""
    import onnxruntime

    def runner(file: Path) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        taken = {i.name: feeds[i.name] for i in session.get_inputs()}
        return lambda: session.run(None, taken)

    yield {name: runner(file) for name, file in files.items()}
