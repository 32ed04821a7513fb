"""A runtime in a process of its own, so that it may crash and its memory can be measured."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Self, cast

from normswap.errors import NormswapError, plain
from normswap.graph.graph import Array
from normswap.runtimes import worker

RUN_SECONDS = 300.0
"""For one load or run by default: a loop in a file may go on for ever."""


class RuntimeFailed(NormswapError):
    """A runtime refused a model, failed at running it, took too long, or crashed; one line that
    names both."""


def check_limit(limit: float) -> None:
    """Raises NormswapError for a limit that is no time a run could take."""
    if not 0 < limit <= threading.TIMEOUT_MAX:
        raise NormswapError(f"--limit: {limit:g} is no number of seconds above 0; give one")


def worker_command(runtime: str) -> list[str]:
    # -P: without it the file's folder comes first in the path, and `import torch` finds torch.py.
    return [sys.executable, "-P", worker.__file__, runtime]


class Process:
    """One model in a process of its own, which ends with ``close`` or with this object.

    ``runtime``: its module in ``normswap.runtimes``; ``model``: the model's name in errors;
    ``limit``: seconds for each request, after which the process is ended. All methods raise
    RuntimeFailed where the runtime fails, and after it has crashed or was ended.

    Raises NormswapError for a limit that is no time.
    """

    def __init__(self, runtime: str, model: str, limit: float = RUN_SECONDS) -> None:
        check_limit(limit)
        self.runtime, self.model, self.limit = runtime, model, limit
        self.name = runtime
        self._late = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        self._process = subprocess.Popen(
            worker_command(runtime),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._crash = ""
        self._end = weakref.finalize(self, _end, self._process, self._errors)

    def load(self, path: Path, threads: int, precise: bool = False) -> None:
        """Loads a file with the runtime's default options; ``name`` is its full name from then on.

        ``precise``: float32 is computed in float32 whatever the CPU has.
        """
        path = Path(os.path.abspath(path))
        request = {"do": "load", "path": str(path), "threads": threads, "precise": precise}
        try:
            self.name = plain(self._ask("load it", request)[0]["name"])
        except RuntimeFailed as failure:
            if self._crash:
                raise
            raise RuntimeFailed(f"{failure}; take another runtime") from failure

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs in order for inputs by name."""
        return self._ask("run it", {"do": "run", "names": list(feeds)}, list(feeds.values()))[1]

    def keep(self, feeds: Mapping[str, Array]) -> None:
        """Inputs for ``seconds``."""
        self._ask("take its inputs", {"do": "keep", "names": list(feeds)}, list(feeds.values()))

    def seconds(self) -> float:
        """How long one run takes, measured in the process."""
        return float(self._ask("run it", {"do": "time"})[0]["seconds"])

    def peak_mib(self) -> float | None:
        """The largest resident memory so far, above that with the runtime imported alone."""
        mib = self._ask("tell its memory", {"do": "peak"})[0]["mib"]
        return None if mib is None else float(mib)

    def close(self) -> None:
        """Ends the process and closes its streams."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, what: str, request: Mapping[str, Any], arrays: Sequence[Array] = ()
    ) -> tuple[dict[str, Any], list[Array]]:
        if self._crash:
            raise RuntimeFailed(self._crash)
        process = self._process
        watch = threading.Timer(self.limit, self._stop)
        watch.daemon = True
        watch.start()
        try:
            worker.send(cast(BinaryIO, process.stdin), request, arrays)
            answer, results = worker.receive(cast(BinaryIO, process.stdout))
        except (EOFError, OSError):
            self._crash = self._ending(what)
            self.close()
            raise RuntimeFailed(self._crash) from None
        except KeyboardInterrupt:  # half of an answer may be on its way
            self._crash = f"{self.model}: {self.runtime} was interrupted"
            self.close()
            raise
        finally:
            watch.cancel()
        if "error" in answer:
            reason = plain(answer["error"])
            raise RuntimeFailed(f"{self.model}: {self.runtime} cannot {what}: {reason}")
        return answer, results

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def _ending(self, what: str) -> str:
        """Why the process did not answer."""
        name = f"{self.model}: {self.runtime}"
        if self._late:
            more = "a loop in it may go on for ever; if it only takes long, give a larger --limit"
            return f"{name} did not {what} within {self.limit:g} s; {more}"
        return f"{name} {self._death()} and did not {what}; take another runtime"

    def _death(self) -> str:
        """How the process ended, or is about to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        status = self._process.returncode
        if status == -9:
            return "was killed (SIGKILL), for memory perhaps,"
        if status is not None and status < 0:
            return f"crashed ({signal.Signals(-status).name})"
        last = _last_line(self._errors)
        return f"ended (status {status}{': ' if last else ''}{last})"


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read()[-10_000:].decode(errors="replace").strip().splitlines()
    return plain(lines[-1]) if lines else ""


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(OSError):  # unwritten data has no reader any more
                stream.close()
