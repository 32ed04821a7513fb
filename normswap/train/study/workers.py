"""Runs in parallel processes of one thread each, and how long the rest will take."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from normswap.errors import NormswapError
from normswap.timing.paired import one_thread
from normswap.train.study.folder import Workload
from normswap.train.study.run import compared_run
from normswap.train.study.runs import Run, RunResult

_SECONDS_TO_END = 5.0


def run_here(work: Workload, runs: Sequence[Run]) -> Iterator[RunResult]:
    """The runs in turn, in this process, on one thread."""
    with one_thread():
        for run in runs:
            yield compared_run(work, run)


def run_in_processes(work: Workload, runs: Sequence[Run], processes: int) -> Iterator[RunResult]:
    """The results as they come. The processes end with this one, whatever ends it.

    Raises NormswapError for one that died, or what a run raised.
    """
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locks
    pool = ProcessPoolExecutor(processes, context, _prepare)
    try:
        futures: list[Future[RunResult]] = [pool.submit(compared_run, work, run) for run in runs]
        for future in as_completed(futures):
            yield future.result()
        pool.shutdown()  # they clean up after themselves
    except BrokenProcessPool as error:
        raise NormswapError(
            "compare: a process died, perhaps for want of memory; continue with --resume and fewer "
            "--processes"
        ) from error
    finally:
        started = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def _prepare() -> None:
    """Ctrl-C is the parent's to handle; a worker whose parent is gone must not wait for it. One
    that is told to end leaves no semaphore behind, of which Python would warn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _stop(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit  # which ends the run; the pool then lets the worker go


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
