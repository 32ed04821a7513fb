"""The process that a runtime has for itself: it reads requests and answers each.

Started as a file, ``python -P worker.py RUNTIME``. A message is a line of JSON and the bytes of its
arrays; it is not pickled, since a process that reads a stranger's model could then send code.

    load {path, threads, precise} -> {name}
    run [inputs]                  -> [outputs]
    keep [inputs]                 -> {}           inputs for the runs that are timed
    time                          -> {seconds}    of one run on these, without the messages
    peak                          -> {mib}        see ``PeakMemory``

A request's ``names`` are those of its inputs. An answer of {error} says why it failed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import ml_dtypes  # noqa: F401  (gives NumPy the names of its dtypes)
import numpy as np

if TYPE_CHECKING:
    from normswap.runtimes import Compiled, Feeds, Outputs

_SETTLED = 0.25  # of a core's time while nothing runs
_NAP, _PATIENCE = 0.004, 0.4  # seconds
_MIB = 1 << 20


# -- messages: both processes use these ----------------------------------------------------------


def send(stream: BinaryIO, message: Mapping[str, Any], arrays: Sequence[Any] = ()) -> None:
    """Writes a message and any number of arrays.

    Raises OSError where the other process has ended, and TypeError, before anything is written, for
    arrays that do not hold numbers.
    """
    data = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    kinds = [(array.dtype.name, array.shape) for array in arrays]
    stream.write(json.dumps({**message, "arrays": kinds}).encode() + b"\n")
    for part in data:
        stream.write(part.data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], Outputs]:
    """Reads what ``send`` wrote. Raises EOFError where the other process has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message = json.loads(line)
    arrays = []
    for dtype, shape in message.pop("arrays"):
        array = np.empty(shape, np.dtype(dtype))
        data = array.reshape(-1).view(np.uint8).data
        while data:
            count = stream.readinto(data)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            data = data[count:]
        arrays.append(array)
    return message, arrays


# -- the process itself --------------------------------------------------------------------------


class PeakMemory:
    """How far the resident memory of this process rose above its level when this was made.

    On Linux; elsewhere above its largest level until then. None where the system does not report
    it.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        self._before = _peak()

    def mib(self) -> float | None:
        now = _peak()
        return None if now is None or self._before is None else (now - self._before) / _MIB


class Session:
    """One model in one runtime, as requests ask. ``runtime``: a module of ``normswap.runtimes``."""

    def __init__(self, runtime: types.ModuleType) -> None:
        self._runtime = runtime
        self._memory = PeakMemory()
        self._model: Compiled | None = None
        self._kept: Feeds = {}

    def answer(self, request: dict[str, Any], arrays: Sequence[Any]) -> tuple[Any, Outputs]:
        """A message and arrays; an exception is a message too."""
        try:
            return self._done(request, dict(zip(request.get("names", ()), arrays, strict=True)))
        except Exception as error:  # the runtimes' exceptions share no base class
            return {"error": self._runtime.reason(error)}, []

    def _done(self, request: dict[str, Any], feeds: Feeds) -> tuple[Any, Outputs]:
        what = request["do"]
        if what == "load":
            options = request["threads"], request["precise"]
            self._model = self._runtime.compiled(request["path"], *options)
            return {"name": self._model.name}, []
        if what == "peak":
            return {"mib": self._memory.mib()}, []
        assert self._model is not None
        if what == "run":
            return {}, self._model(feeds)
        if what == "keep":
            self._kept = feeds
            return {}, []
        assert what == "time"
        return {"seconds": self._seconds(self._model)}, []

    def _seconds(self, model: Compiled) -> float:
        model(self._kept)  # other processes ran meanwhile, and the caches hold their weights
        before = time.perf_counter()
        model(self._kept)
        seconds = time.perf_counter() - before
        _settle()
        return seconds


def serve(runtime: types.ModuleType) -> None:
    """Answers requests until the other process closes the stream."""
    requests, answers = _streams()
    session = Session(runtime)
    try:
        while True:
            answer, arrays = session.answer(*receive(requests))
            try:
                send(answers, answer, arrays)
            except TypeError:
                send(answers, {"error": "an output does not hold numbers"})
    except (EOFError, BrokenPipeError):
        return


def _peak() -> int | None:
    """In bytes. Linux's ru_maxrss includes the parent process, its status file does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _settle() -> None:
    """Waits until no thread of this process is busy: some spin for a while after a run, and would
    take time from the next model."""
    until = time.perf_counter() + _PATIENCE
    while time.perf_counter() < until:
        before = time.process_time(), time.perf_counter()
        time.sleep(_NAP)
        used, passed = time.process_time() - before[0], time.perf_counter() - before[1]
        if used < _SETTLED * passed:
            return


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for messages alone: all other output goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def without_the_package() -> None:
    """Lets modules of normswap be imported without the package's ``__init__``: it may import torch,
    which takes seconds and 250 MiB that belong to no other runtime."""
    package = types.ModuleType("normswap")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["normswap"] = package


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    without_the_package()
    serve(importlib.import_module(f"normswap.runtimes.{sys.argv[1]}"))
