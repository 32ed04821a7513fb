"""Times that can be compared: all candidates run in turn, round by round."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array
from normswap.graph.onnx.evaluate import SESSION_THREADS
from normswap.model import Progress

ROUNDS = 32
_WARM_UP = 5
Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Time per run, and as a ratio to the reference's in the same round: median and quartiles."""

    milliseconds: float
    ratio: float
    low: float
    high: float


def compare(
    runs: Mapping[str, Run], reference: str, rounds: int | None = None
) -> dict[str, Timing]:
    """Times each of ``runs`` in ``rounds`` (``ROUNDS`` by default), after a warm-up."""
    for _ in range(_WARM_UP):
        for run in runs.values():
            run()
    seconds = in_turn({name: _timed(run) for name, run in runs.items()}, rounds or ROUNDS)
    base = np.array(seconds[reference])
    return {name: _timing(np.array(taken), base) for name, taken in seconds.items()}


def in_turn(
    seconds: Mapping[str, Callable[[], float]], rounds: int, progress: Progress | None = None
) -> dict[str, list[float]]:
    """Calls each of ``seconds`` once in every round and returns their values. Each round starts at
    the next one, so that disturbances of the machine affect all alike."""
    names = list(seconds)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        if progress:
            progress(number, rounds, "measuring")
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(seconds[name]())
    if progress:
        progress(rounds, rounds, "measuring")
    return taken


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread until the block ends, and so the graphs that ONNX Runtime evaluates."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    token = SESSION_THREADS.set(1)
    try:
        yield
    finally:
        SESSION_THREADS.reset(token)
        torch.set_num_threads(threads)


def _timed(run: Run) -> Callable[[], float]:
    def seconds() -> float:
        before = time.perf_counter()
        run()
        return time.perf_counter() - before

    return seconds


def _timing(seconds: Array, base: Array) -> Timing:
    ratios = seconds / base
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Timing(1000 * float(np.median(seconds)), float(median), float(low), float(high))
