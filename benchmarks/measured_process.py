"""Wall time and peak memory of a command in a process of its own.

A new process inherits the peak of the one that starts it, so a small Python in between starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """``cpu_seconds``: of all its threads. ``mib``: the largest resident size, pages of mapped
    files included. ``error``: the last line that the command printed to standard error if it
    failed, else ''."""

    seconds: float
    cpu_seconds: float
    mib: float
    error: str = ""


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Runs ``command`` to its end; what it prints is dropped."""
    starter = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *command]
    answer = subprocess.run(
        starter, env={**os.environ, **(environment or {})}, capture_output=True, check=True
    )
    return Cost(**json.loads(answer.stdout))


def _start() -> None:
    before = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace").strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    cpu_seconds = usage.ru_utime + usage.ru_stime
    mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    code = os.waitstatus_to_exitcode(status)
    error = f"exit {code}: {said[-1] if said else ''}" if code else ""
    cost = {"seconds": seconds, "cpu_seconds": cpu_seconds, "mib": mib, "error": error}
    print(json.dumps(cost))


if __name__ == "__main__":
    _start()
