"""One model in one runtime while it is measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.runtimes.errors import RuntimeFailed
from normswap.runtimes.process import Process
from normswap.runtimes.run import SUFFIXES

_WARM_UP = 3


class Entry:
    """``seconds``: what was measured so far; ``error``: why nothing more can be; ``peak_mib``: once
    ``finish`` was called."""

    def __init__(self, model: Model, runtime: str) -> None:
        self.model, self.runtime = model, runtime
        self.name = runtime
        self.seconds: list[float] = []
        self.peak_mib: float | None = None
        self.error: str | None = None
        self._process: Process | None = None

    def start(
        self,
        file: Callable[[str], Path],
        feeds: Mapping[str, Array],
        stack: contextlib.ExitStack,
    ) -> float:
        """Loads the model, warms it up, and returns how long a run takes. ``file``: see
        ``scratch_files``; the process ends with ``stack``."""
        try:
            path = file(SUFFIXES[self.runtime])
            process = stack.enter_context(Process(self.runtime, self.model.name))
            process.load(path, torch.get_num_threads())
            process.keep(feeds)
            warm_up = [process.seconds() for _ in range(_WARM_UP)]
        except NormswapError as error:
            self.error = str(error)
            return math.nan
        self._process, self.name = process, process.name
        return min(warm_up)

    def measure(self) -> float:
        """Adds the time of one run; not a number once it has failed."""
        if self._process is None or self.error is not None:
            return math.nan
        try:
            self.seconds.append(self._process.seconds())
        except RuntimeFailed as failure:
            self.error = str(failure)
            return math.nan
        return self.seconds[-1]

    def finish(self) -> None:
        """Asks for the memory."""
        if self._process is not None and self.error is None:
            try:
                self.peak_mib = self._process.peak_mib()
            except RuntimeFailed as failure:
                self.error = str(failure)
