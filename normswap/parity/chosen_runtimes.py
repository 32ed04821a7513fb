"""Models in the runtimes that a validation is asked for."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping

from normswap.graph.graph import Array
from normswap.model import Model
from normswap.parity.pairing import Run, RunFailed
from normswap.runtimes.process import RuntimeFailed
from normswap.runtimes.run_in import run_in


def opened(
    model: Model, runtime: str | None, limit: float, stack: contextlib.ExitStack
) -> tuple[Run | None, str]:
    """How ``model`` is run until ``stack`` closes (None: as its graph does), and the name of what
    runs it.

    ``runtime``: None for what its graph runs in, else one of ``normswap.runtimes.run_in``, with a
    ``limit`` in seconds for each run. One that refuses the model, crashes or takes longer is
    RunFailed at each run: a finding. Raises NormswapError for a runtime that is unknown, missing,
    or not for this kind of model.
    """
    if runtime is None:
        return None, _own_runtime(model)
    try:
        run = stack.enter_context(run_in(model, runtime, limit))
    except RuntimeFailed as failure:
        return _refusing(str(failure)), runtime

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        model.check_feeds(feeds)
        try:
            return run(feeds)
        except RuntimeFailed as failure:
            raise RunFailed(str(failure)) from failure

    return call, run.name


def _own_runtime(model: Model) -> str:
    if model.kind == "fx":
        return f"torch {importlib.metadata.version('torch')}"
    return f"onnxruntime {importlib.metadata.version('onnxruntime')}, not optimised"


def _refusing(reason: str) -> Run:
    def call(_feeds: Mapping[str, Array]) -> list[Array]:
        raise RunFailed(reason)

    return call
