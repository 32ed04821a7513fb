"""The largest resident memory of this process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

_MIB = 1 << 20


class PeakMemory:
    """How far the resident memory has risen above what it was when this was made.

    On Linux; elsewhere above the largest that it had been by then. None where the system does not
    tell.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        self._before = _peak()

    def mib(self) -> float | None:
        now = _peak()
        return None if now is None or self._before is None else (now - self._before) / _MIB


def _peak() -> int | None:
    """In bytes. Linux's ru_maxrss counts the parent process in, its status file does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
