"""The demo's jobs, each in a process of its own where there are processors for it."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from normswap.errors import NormswapError
from normswap.pool import process_pool

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
        return [_alone(work, job, announce) for job in jobs]
    said = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        with process_pool(processes, _prepare, said) as pool:
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


def _prepare(said: Any) -> None:
    """What the parent has said already, such as warnings, is not said again."""
    global _said
    _said = said
    sys.stdout = sys.stderr
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _run(work: Callable[[Job, Announce], Result], job: Job) -> Result:
    return _alone(work, job, _said.put)


def _alone(work: Callable[[Job, Announce], Result], job: Job, announce: Announce) -> Result:
    from normswap.timing.paired import one_thread  # where models run; its parent has none

    with one_thread():  # models this small gain nothing from more
        return work(job, announce)
