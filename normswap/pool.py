"""Processes beside this one that end with it, whatever ends it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_SECONDS_TO_END = 5.0


@contextlib.contextmanager
def process_pool(
    processes: int, prepare: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes, each of which calls ``prepare(*arguments)`` first.

    Where the block fails or is interrupted, they are told to end, and killed if they do not.
    ``arguments`` may hold queues of the context 'spawn', as ``multiprocessing`` has it.
    """
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locks
    pool = ProcessPoolExecutor(processes, context, _begin, (prepare, arguments))
    try:
        yield pool
    except BaseException:
        started = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        raise
    pool.shutdown()  # they clean up after themselves


def _begin(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Ctrl-C is the parent's to handle; a process whose parent is gone must not go on. One that is
    told to end leaves no semaphore behind, of which Python would warn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _stop(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit  # which ends the task; the pool then lets the process go


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
