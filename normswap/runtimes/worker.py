"""The process that a runtime has for itself: it reads requests and answers each.

Started as a file, ``python -P worker.py RUNTIME``. Requests and answers are messages of ``wire``:

    load {path, threads}, load_precisely {path, threads}
                         -> {name}
    run [inputs]         -> [outputs]
    keep [inputs]        -> {}           inputs for the runs to be timed
    time                 -> {seconds}    of one run of these, what the processes exchange left out
    peak                 -> {mib}        see memory.py

Inputs go with their ``names``. An answer of {error} says why it could not be done.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from normswap.runtimes.compiled import Compiled, Feeds, Outputs

_SETTLED = 0.25  # of a core's time while nothing runs
_NAP, _PATIENCE = 0.004, 0.4  # seconds


class Session:
    """One model in one runtime, as requests ask."""

    def __init__(self, runtime: types.ModuleType) -> None:
        from normswap.runtimes.memory import PeakMemory

        self._runtime = runtime
        self._memory = PeakMemory()
        self._model: Compiled | None = None
        self._kept: Feeds = {}

    def answer(self, request: dict[str, Any], arrays: Sequence[Any]) -> tuple[Any, Outputs]:
        """A message and arrays; whatever goes wrong is a message too."""
        try:
            return self._done(request, dict(zip(request.get("names", ()), arrays, strict=True)))
        except Exception as error:  # the runtimes' exceptions share no base class
            return {"error": self._runtime.reason(error)}, []

    def _done(self, request: dict[str, Any], feeds: Feeds) -> tuple[Any, Outputs]:
        what = request["do"]
        if what == "load":
            self._model = self._runtime.compiled(request["path"], request["threads"])
            return {"name": self._model.name}, []
        if what == "load_precisely":
            self._model = self._runtime.compiled_precisely(request["path"], request["threads"])
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
        model(self._kept)  # others ran meanwhile: the caches hold their weights
        before = time.perf_counter()
        model(self._kept)
        seconds = time.perf_counter() - before
        _settle()
        return seconds


def serve(runtime: types.ModuleType) -> None:
    """Answers until there is nobody to ask."""
    from normswap.runtimes import wire

    requests, answers = _streams()
    session = Session(runtime)
    try:
        while True:
            answer, arrays = session.answer(*wire.receive(requests))
            try:
                wire.send(answers, answer, arrays)
            except TypeError:
                wire.send(answers, {"error": "an output does not hold numbers"})
    except (EOFError, BrokenPipeError):
        return


def _settle() -> None:
    """Waits until no thread of this process is busy: some spin for a while after a run, and would
    take from whoever runs next."""
    until = time.perf_counter() + _PATIENCE
    while time.perf_counter() < until:
        before = time.process_time(), time.perf_counter()
        time.sleep(_NAP)
        used, passed = time.process_time() - before[0], time.perf_counter() - before[1]
        if used < _SETTLED * passed:
            return


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the messages alone: what else is printed goes to the errors."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def without_the_package() -> None:
    """Lets modules of normswap be imported without the package's ``__init__``, which imports torch:
    that takes seconds and 250 MiB which belong to no other runtime."""
    package = types.ModuleType("normswap")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["normswap"] = package


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    without_the_package()
    serve(importlib.import_module(f"normswap.runtimes.{sys.argv[1]}"))
