"""Times that can be compared: all candidates in turn, round by round, on one thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from normswap.graph.graph import Array
from normswap.model import Model

THREADS = 1
_WARM_UP, _ROUNDS = 5, 32
Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Time per batch against the reference's in the same round: median and quartiles."""

    milliseconds: float
    ratio: float
    low: float
    high: float


def compare(runs: Mapping[str, Run], reference: str) -> dict[str, Timing]:
    """Times each of ``runs``. The rounds start at another candidate each, so that what disturbs
    the machine disturbs all alike.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_WARM_UP):
        for run in runs.values():
            run()
    for number in range(_ROUNDS):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            before = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - before)
    base = np.array(seconds[reference])
    return {name: _timing(np.array(taken), base) for name, taken in seconds.items()}


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
        module = model.to_torch().eval()
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


def _timing(seconds: Array, base: Array) -> Timing:
    ratios = seconds / base
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Timing(1000 * float(np.median(seconds)), float(median), float(low), float(high))
