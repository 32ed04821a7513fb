"""Runs in parallel processes of one thread each, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

import torch

from normswap.errors import NormswapError
from normswap.pool import process_pool
from normswap.timing.paired import one_thread
from normswap.train.study.folder import Workload
from normswap.train.study.run import compared_run
from normswap.train.study.runs import Run, RunResult
from normswap.train.study.schedule import Budget, Found, Schedule


def run_as_scheduled(
    work: Workload,
    schedule: Schedule,
    found: Found,
    budget: Budget,
    processes: int,
) -> Iterator[RunResult]:
    """The results of what is due, as they come; ``found``, those that there are, is to grow by
    them. With one process in this one, on one thread; of several each has one thread, and they end
    with this one, whatever ends it. No run is begun that does not fit the ``budget``.

    Raises NormswapError for a process that died, or what a run raised.
    """
    began = time.monotonic()

    def due(running: Collection[Run]) -> Iterator[Run]:
        for run in schedule.due(found):
            if run not in running:
                if not budget.fits(run, found, time.monotonic() - began):
                    return
                yield run

    if processes == 1:
        with one_thread():
            while (run := next(due(()), None)) is not None:
                yield compared_run(work, run)
        return
    running: dict[Future[RunResult], Run] = {}
    try:
        with process_pool(processes, _on_one_thread) as pool:
            while True:
                for run in islice(due(running.values()), processes - len(running)):
                    running[pool.submit(compared_run, work, run)] = run
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    yield future.result()
    except BrokenProcessPool as error:
        raise NormswapError(
            "compare: a process died, perhaps for want of memory; continue with --resume and fewer "
            "--processes"
        ) from error


def _on_one_thread() -> None:
    torch.set_num_threads(1)


class Remaining:
    """The pace from when it is made."""

    def __init__(self) -> None:
        self._done, self._began = 0, time.monotonic()

    def after_one(self, todo: int) -> str:
        """To be called when one is done and ``todo`` others are not: '7.2 a minute, 3 min left'."""
        self._done += 1
        each = (time.monotonic() - self._began) / self._done
        left = each * todo
        remaining = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        return f"{60 / max(each, 1e-9):.1f} a minute, {remaining} left"
