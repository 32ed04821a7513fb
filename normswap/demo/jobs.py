"""The demo's jobs, each in a process of its own where there are processors for it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from normswap.errors import NormswapError
from normswap.timing.paired import one_thread

Announce = Callable[[str], None]
Job = TypeVar("Job")
Result = TypeVar("Result")
_POLL = 0.2  # seconds between looks at what the processes say
_said: Any = None  # in a process of the pool: the queue to its parent


def run_jobs(
    work: Callable[[Job, Announce], Result],
    jobs: Sequence[Job],
    processes: int,
    announce: Announce,
) -> list[Result]:
    """``work(job, announce)`` of each job, on one thread, in the order of ``jobs``.

    ``work`` is a function of a module, and what goes in and out can be pickled. One process at most
    runs them here. Raises NormswapError for a process that died, and what ``work`` raises.
    """
    if min(processes, len(jobs)) < 2:
        with one_thread():  # models this small gain nothing from more
            return [work(job, announce) for job in jobs]
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locks
    said = context.SimpleQueue()
    try:
        with _pool(processes, context, said) as pool:
            futures = [pool.submit(_run, work, job) for job in jobs]
            _follow(futures, said, announce)
            return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise NormswapError(
            "the demo: a process died, perhaps for want of memory; close other programs"
        ) from error


def _follow(futures: Sequence[Future[Result]], said: Any, announce: Announce) -> None:
    """Passes on what the processes say until all are done or one fails."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL)
        while not said.empty():
            announce(said.get())
        for future in done:
            future.result()


@contextlib.contextmanager
def _pool(processes: int, context: Any, said: Any) -> Iterator[ProcessPoolExecutor]:
    """Ends its processes at once where the block fails."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _prepare, (said,))
    try:
        yield pool
    except BaseException:
        started = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.kill()
        for process in started:
            process.join()
        raise
    pool.shutdown()


def _prepare(said: Any) -> None:
    """Ctrl-C is the parent's to handle, and it has given the warnings; a process whose parent is
    gone must not go on."""
    global _said
    _said = said
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Callable[[Job, Announce], Result], job: Job) -> Result:
    with one_thread():
        return work(job, _said.put)
