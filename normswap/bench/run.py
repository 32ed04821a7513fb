"""``bench``: how long models take, beside each other."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from normswap.bench.entry import Entry
from normswap.bench.inputs import common_model, described, drawn, named_for
from normswap.bench.report import BenchReport, Measurement
from normswap.bench.statistics import FEWEST_ROUNDS, ratio_of
from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.progress import Progress
from normswap.runtimes.files import scratch_files
from normswap.runtimes.machine import machine
from normswap.runtimes.run import check_runtime, default_runtime, fits, no_torch_graph
from normswap.timing import in_turn
from normswap.validate.summary import provenance

_ROUNDS = (10, 50)  # by default as many as take a minute, within these
_SECONDS = 60.0
_RUNS = 2  # of each model in a round: see worker.py


def bench(
    models: Sequence[Model],
    *,
    runtimes: Sequence[str] | None = None,
    batch: int | None = None,
    inputs: Mapping[str, Array] | None = None,
    rounds: int | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Times every one of ``models`` in every one of ``runtimes`` that fits it.

    ``runtimes``: of 'torch' (eager, for torch models), 'onnxruntime' and 'openvino', each with its
    default options and torch's number of threads; by default torch for torch models and
    onnxruntime for ONNX. Each model has a process of its own, which loads the file that ``save``
    writes. They run in turn, round by round, after a warm-up: a run to fill the caches, one that is
    timed, and a pause until no thread of that process is busy. ``rounds``: at least 6; by
    default as many as take a minute, from 10 to 50. ``inputs``: arrays by the first model's input
    names; by default random ones of ``batch`` (1) rows, the same for all.

    A model that fails in a runtime has an ``error`` in the report. Raises NormswapError for models
    whose inputs differ, for one that fits none of the runtimes, for a runtime that is unknown or
    not installed, and for inputs that do not fit.
    """
    pairs = _pairs(models, runtimes)
    if rounds is not None and rounds < FEWEST_ROUNDS:
        raise NormswapError(
            f"--rounds: {rounds} give no confidence interval; take {FEWEST_ROUNDS} or more"
        )
    common = common_model(models)
    if inputs is None:
        inputs = drawn(common, batch)
    elif batch is not None:
        raise NormswapError("bench: batch is for random inputs; leave it out with inputs")
    common.check_feeds(inputs)
    with contextlib.ExitStack() as stack:
        entries = [Entry(model, runtime) for model, runtime in pairs]
        one_round = _start(entries, common, inputs, stack, progress)
        rounds = rounds or _affordable(one_round)
        working = {str(i): e.measure for i, e in enumerate(entries) if e.error is None}
        if working:
            in_turn(working, rounds, progress)
        for entry in entries:
            entry.finish()
    return BenchReport(
        described(inputs),
        rounds,
        torch.get_num_threads(),
        _versions(entries),
        machine(),
        _results(entries),
    )


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


def _start(
    entries: Sequence[Entry],
    common: Model,
    inputs: Mapping[str, Array],
    stack: contextlib.ExitStack,
    progress: Progress | None,
) -> float:
    """Starts all; the time of a run of each that works, together."""
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


def _results(entries: Sequence[Entry]) -> list[Measurement]:
    measured = [entry for entry in entries if entry.error is None]
    results = []
    for entry in entries:
        told = None if entry.model.path is None else str(entry.model.path)
        if entry.error is not None:
            results.append(Measurement(entry.model.name, told, entry.runtime, error=entry.error))
            continue
        first = measured[0]
        own = next(other for other in measured if other.runtime == entry.runtime)
        low, median, high = (1000 * float(s) for s in np.quantile(entry.seconds, [0.25, 0.5, 0.75]))
        results.append(
            Measurement(
                entry.model.name,
                told,
                entry.runtime,
                median,
                (low, high),
                None if entry is first else ratio_of(entry.seconds, first.seconds),
                None if own in (entry, first) else ratio_of(entry.seconds, own.seconds),
                entry.peak_mib,
            )
        )
    return results


def _versions(entries: Sequence[Entry]) -> dict[str, str]:
    versions = provenance().versions
    for runtime in dict.fromkeys(entry.runtime for entry in entries):
        told = {e.name.partition(" ")[2]: None for e in entries if e.runtime == runtime}
        if known := [text for text in told if text]:
            versions[runtime] = ", ".join(known)
    return versions
