"""A worker that kills itself: ``python crashing.py WORKER SIGNAL load``, or ``run``: at its second
one. WORKER is the path of worker.py; what it runs gives its inputs back.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import types
from typing import Any


def runtime(end: signal.Signals, when: str) -> types.ModuleType:
    from normswap.runtimes import Compiled

    runs = 0

    def compiled(_path: str, _threads: int, _precise: bool) -> Compiled:
        if when == "load":
            os.kill(os.getpid(), end)
        return Compiled("crashing 1", run)

    def run(feeds: Any) -> list[Any]:
        nonlocal runs
        runs += 1
        if runs == 2:
            os.kill(os.getpid(), end)
        return list(feeds.values())

    module = types.ModuleType("crashing")
    vars(module).update(compiled=compiled, reason=str)
    return module


if __name__ == "__main__":
    worker = runpy.run_path(sys.argv[1])
    worker["without_the_package"]()
    worker["serve"](runtime(signal.Signals[sys.argv[2]], sys.argv[3]))
