"""``bench``: how long models take, compared with each other."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import InputSpec, Model, Progress
from normswap.parity.pairing import matched_names, shared_inputs
from normswap.parity.probes import draw_feeds
from normswap.parity.summary import provenance
from normswap.runtimes.machine import machine
from normswap.runtimes.process import RUN_SECONDS, Process, RuntimeFailed, check_limit
from normswap.runtimes.run_in import (
    SUFFIXES,
    check_runtime,
    default_runtime,
    fits,
    no_torch_graph,
    scratch_files,
)
from normswap.timing.bench_report import FEWEST_ROUNDS, BenchReport, Measurement, ratio_of
from normswap.timing.paired import in_turn

_ROUNDS = (10, 50)  # by default as many as take a minute, within these
_SECONDS = 60.0
_RUNS = 2  # of each model in a round: see worker.py
_WARM_UP = 3


def bench(
    models: Sequence[Model],
    *,
    runtimes: Sequence[str] | None = None,
    batch: int | None = None,
    inputs: Mapping[str, Array] | None = None,
    rounds: int | None = None,
    limit: float = RUN_SECONDS,
    progress: Progress | None = None,
) -> BenchReport:
    """Times every one of ``models`` in every one of ``runtimes`` that fits it.

    Each model has a process of its own, which loads the file that ``save`` writes. They run in
    turn, round by round, after a warm-up: a run to fill the caches, one that is timed, and a pause
    until no thread of that process is busy.

    Args:
        models: with the same inputs; the others are held against the first.
        runtimes: of 'torch' (eager, for torch models), 'onnxruntime' and 'openvino', each with its
            default options and torch's number of threads; by default torch for torch models and
            onnxruntime for ONNX.
        batch: rows of the random inputs; by default 1, or what the first model fixes.
        inputs: arrays by the first model's input names, in place of random ones.
        rounds: at least 6; by default as many as take a minute, from 10 to 50.
        limit: seconds for one run, and for loading a model; one that takes longer has failed.
        progress: ``progress(done, total, what)`` is called before each round.

    Returns:
        Times, ratios with confidence intervals, and peak memory. A model that fails in a runtime
        has an ``error`` there.

    Raises:
        NormswapError: models whose inputs differ, one that fits none of the runtimes, a runtime
            that is unknown or not installed, a limit that is no time, and inputs that do not fit.

    Examples:
        >>> report = bench([load("vit.onnx"), load("fused.onnx")], batch=8)
    """
    check_limit(limit)
    pairs = _pairs(models, runtimes)
    if rounds is not None and rounds < FEWEST_ROUNDS:
        raise NormswapError(
            f"--rounds: {rounds} give no confidence interval; take {FEWEST_ROUNDS} or more"
        )
    common = _common_model(models)
    if inputs is None:
        inputs = _random_inputs(common, batch)
    elif batch is not None:
        raise NormswapError("bench: batch is for random inputs; leave it out with inputs")
    common.check_feeds(inputs)
    with contextlib.ExitStack() as stack:
        entries = [_Entry(model, runtime, limit) for model, runtime in pairs]
        one_round = _start(entries, common, inputs, stack, progress)
        rounds = rounds or _affordable(one_round)
        working = {str(i): e.measure for i, e in enumerate(entries) if e.error is None}
        if working:
            in_turn(working, rounds, progress)
        for entry in entries:
            entry.finish()
    sizes = {name: "x".join(map(str, array.shape)) or "scalar" for name, array in inputs.items()}
    return BenchReport(
        {name: f"{sizes[name]} {array.dtype.name}" for name, array in inputs.items()},
        rounds,
        torch.get_num_threads(),
        _versions(entries),
        machine(),
        _results(entries),
    )


def named_for(
    model: Model, specs: Sequence[InputSpec], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """``feeds`` of inputs ``specs`` for the inputs of ``model``, in its order: those of the same
    names, and the others in turn, as ``shared_inputs`` matches them."""
    own = [spec.name for spec in model.inputs]
    given = matched_names(own, [spec.name for spec in specs])
    return {name: np.asarray(feeds[given[name]]) for name in own}


class _Entry:
    """One model in one runtime while it is measured.

    ``seconds``: the times so far; ``error``: why nothing more can be measured; ``peak_mib``: known
    after ``finish``.
    """

    def __init__(self, model: Model, runtime: str, limit: float) -> None:
        self.model, self.runtime, self.limit = model, runtime, limit
        self.name = runtime
        self.seconds: list[float] = []
        self.peak_mib: float | None = None
        self.error: str | None = None
        self._process: Process | None = None

    def start(
        self, file: Callable[[str], Path], feeds: Mapping[str, Array], stack: contextlib.ExitStack
    ) -> float:
        """Loads the model, warms it up, and returns how long a run takes. ``file``: see
        ``scratch_files``; the process ends with ``stack``."""
        try:
            path = file(SUFFIXES[self.runtime])
            process = stack.enter_context(Process(self.runtime, self.model.name, self.limit))
            process.load(path, torch.get_num_threads())
            process.keep(feeds)
            warm_up = [process.seconds() for _ in range(_WARM_UP)]
        except NormswapError as error:
            self.error = str(error)
            return math.nan
        self._process, self.name = process, process.name
        return min(warm_up)

    def measure(self) -> float:
        """Adds the time of one run; NaN once it has failed."""
        seconds = self._ask(Process.seconds)
        if seconds is None:
            return math.nan
        self.seconds.append(seconds)
        return seconds

    def finish(self) -> None:
        """Reads the peak memory."""
        self.peak_mib = self._ask(Process.peak_mib)

    def _ask(self, question: Callable[[Process], float | None]) -> float | None:
        if self._process is not None and self.error is None:
            try:
                return question(self._process)
            except RuntimeFailed as failure:
                self.error = str(failure)
        return None


def _pairs(models: Sequence[Model], runtimes: Sequence[str] | None) -> list[tuple[Model, str]]:
    if not models:
        raise NormswapError("bench: there is no model; name one or more")
    asked = list(dict.fromkeys(runtimes or ()))
    pairs = []
    for model in models:
        fitting = [name for name in asked or [default_runtime(model)] if fits(model, name)]
        if not fitting:
            raise no_torch_graph(model)
        pairs += [(model, name) for name in fitting]
    for name in dict.fromkeys([*asked, *(name for _, name in pairs)]):
        check_runtime(name)
    return pairs


def _common_model(models: Sequence[Model]) -> Model:
    """The first of ``models`` with every input size fixed that any of them fixes.

    Raises NormswapError naming two of them where no input can fit both.
    """
    first = models[0]
    for other in models[1:]:
        first = replace(first, inputs=shared_inputs(first, other))
    return first


def _random_inputs(model: Model, batch: int | None) -> dict[str, Array]:
    """Standard normal numbers, or token ids. Raises NormswapError for another fixed batch."""
    leading = [spec.shape[0] for spec in model.inputs if spec.shape]
    fixed = leading and all(isinstance(size, int) for size in leading)
    if batch is not None and fixed and batch not in leading:
        raise NormswapError(
            f"{model.name}: its batch is fixed at {leading[0]}, not {batch}; leave --batch out, or "
            "export it with a dynamic batch"
        )
    return draw_feeds(model, "normal", batch or 1, [0, 0])


def _start(
    entries: Sequence[_Entry],
    common: Model,
    inputs: Mapping[str, Array],
    stack: contextlib.ExitStack,
    progress: Progress | None,
) -> float:
    """Starts all; the time of one run of each that works, in total."""
    total = 0.0
    groups = itertools.groupby(enumerate(entries), key=lambda item: id(item[1].model))
    for _, group in groups:  # a model is written once for all runtimes that load the same file
        members = list(group)
        model = members[0][1].model
        feeds = named_for(model, common.inputs, inputs)
        with scratch_files(model) as file:
            for done, entry in members:
                if progress:
                    progress(done, len(entries), f"loading {model.name} in {entry.runtime}")
                seconds = entry.start(file, feeds, stack)
                total += seconds if entry.error is None else 0
    return total


def _affordable(one_round: float) -> int:
    fewest, most = _ROUNDS
    return int(np.clip(_SECONDS / max(_RUNS * one_round, 1e-9), fewest, most))


def _results(entries: Sequence[_Entry]) -> list[Measurement]:
    first = next((entry for entry in entries if entry.error is None), None)
    first_in: dict[str, _Entry] = {}
    results = []
    for entry in entries:
        path = None if entry.model.path is None else str(entry.model.path)
        result = Measurement(entry.model.label, path, entry.runtime, error=entry.error)
        if entry.error is None and first is not None:
            own = first_in.setdefault(entry.runtime, entry)
            quartiles = np.quantile(entry.seconds, [0.25, 0.5, 0.75])
            low, median, high = (1000 * float(seconds) for seconds in quartiles)
            result = replace(
                result,
                milliseconds=median,
                quartiles=(low, high),
                ratio=None if entry is first else ratio_of(entry.seconds, first.seconds),
                ratio_in_runtime=(
                    None if own in (entry, first) else ratio_of(entry.seconds, own.seconds)
                ),
                peak_mib=entry.peak_mib,
            )
        results.append(result)
    return results


def _versions(entries: Sequence[_Entry]) -> dict[str, str]:
    versions = provenance().versions
    for runtime in dict.fromkeys(entry.runtime for entry in entries):
        names = {e.name.partition(" ")[2]: None for e in entries if e.runtime == runtime}
        if known := [name for name in names if name]:
            versions[runtime] = ", ".join(known)
    return versions
