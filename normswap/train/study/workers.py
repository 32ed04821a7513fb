"""Runs in parallel processes of one thread each, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from normswap.errors import NormswapError
from normswap.pool import process_pool
from normswap.timing.paired import one_thread
from normswap.train.study.folder import Workload
from normswap.train.study.run import compared_run
from normswap.train.study.runs import Run, RunResult


def run_here(work: Workload, runs: Sequence[Run]) -> Iterator[RunResult]:
    """The runs in turn, in this process, on one thread."""
    with one_thread():
        for run in runs:
            yield compared_run(work, run)


def run_in_processes(work: Workload, runs: Sequence[Run], processes: int) -> Iterator[RunResult]:
    """The results as they come. The processes end with this one, whatever ends it.

    Raises NormswapError for one that died, or what a run raised.
    """
    try:
        with process_pool(processes, _on_one_thread) as pool:
            futures: list[Future[RunResult]] = [pool.submit(compared_run, work, r) for r in runs]
            for future in as_completed(futures):
                yield future.result()
    except BrokenProcessPool as error:
        raise NormswapError(
            "compare: a process died, perhaps for want of memory; continue with --resume and fewer "
            "--processes"
        ) from error


def _on_one_thread() -> None:
    torch.set_num_threads(1)


class Remaining:
    """``todo``: what is still to be done when it is made."""

    def __init__(self, todo: int) -> None:
        self._todo, self._done, self._began = todo, 0, time.monotonic()

    def after_one(self) -> str:
        """To be called when one is done: as '7.2 a minute, 3 min left'."""
        self._done += 1
        each = (time.monotonic() - self._began) / self._done
        left = each * (self._todo - self._done)
        remaining = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        return f"{60 / max(each, 1e-9):.1f} a minute, {remaining} left"
