"""A limit on the CPU time of a block of Python: sympy may take minutes for an expression of a line,
and no rule on its text tells which."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator

_LOOK = 0.1  # seconds between two looks at the time


class TooLong(BaseException):
    """No Exception, since libraries go on after those."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TooLong inside the block once this thread has worked for ``seconds`` in it.

    An error that the block makes of the interruption is TooLong too. Code that is not Python is not
    interrupted. No limit where the system does not tell a thread's
    time.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        yield
        return
    thread = threading.get_ident()
    clock = time.pthread_getcpuclockid(thread)
    end = time.clock_gettime(clock) + seconds
    over, fired, lock = threading.Event(), threading.Event(), threading.Lock()

    def watch() -> None:
        while not over.wait(_LOOK):
            with lock:
                if not over.is_set() and time.clock_gettime(clock) > end:
                    fired.set()
                    raised = ctypes.py_object(TooLong)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if fired.is_set():
            raise TooLong from error
        raise
    finally:
        with lock:
            over.set()
