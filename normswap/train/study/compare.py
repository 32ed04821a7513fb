"""``compare``: LayerNorm against BatchNorm, trained from the same initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.model import Model, Progress
from normswap.parity.summary import provenance
from normswap.runtimes.machine import machine, processors
from normswap.train.study.contest import Contest, default_contest, own_contest
from normswap.train.study.deployed import deploy, measure
from normswap.train.study.folder import CompareFolder, Workload
from normswap.train.study.results import Comparison, Options, find
from normswap.train.study.runs import Run, RunResult
from normswap.train.study.variants import VARIANTS, check_variants
from normswap.train.study.workers import Remaining, run_here, run_in_processes

RATES = (0.002, 0.008, 0.03, 0.1)
SEEDS, STEPS, BATCH = 4, 400, 32


def compare(
    folder: str | Path,
    model: Model | None = None,
    *,
    data: Any = None,
    labels: Any = None,
    variants: Sequence[str] = tuple(VARIANTS),
    rates: Sequence[float] = RATES,
    seeds: int = SEEDS,
    steps: int = STEPS,
    batch: int = BATCH,
    processes: int | None = None,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Trains ``model``, which is to be untrained, with the norms of each of ``variants`` at each of
    ``rates``, ``seeds`` times, and writes what came out into ``folder``.

    Training: AdamW, no augmentation, no dropout, in float32 on the CPU. Into ``folder`` go
    ``README.md`` (table, findings), ``results.json``, figures, the best models, ``log.jsonl``, and
    every finished run.

    Args:
        folder: it is made if it is not there.
        model: a torch model that classifies; by default a small ViT on scikit-learn's digits, of
            other weights for each seed (weights of a given model stay; the seed orders its
            samples).
        data: what ``load_data`` takes, with labels or beside ``labels``; a fifth of each class is
            kept back to test on.
        labels: integers [N].
        variants: of 'ln', 'bn', 'bn-ffn' and 'repbn', with 'ln'.
        rates: the highest learning rates.
        seeds: runs of each variant at each rate.
        steps: updates of a run.
        batch: samples per update, 2 or more.
        processes: as many runs at a time, one thread each; by default as there are processors.
        resume: go on with what is in ``folder``.
        command: what makes it again, to stand in the page.
        progress: ``progress(done, total, what)`` is called for each run.

    Returns:
        The runs, the figures of the best models, their times, and the findings.

    Raises:
        NormswapError: matplotlib is missing, options out of range, data without labels, a model
            that cannot be trained or swapped, a folder that holds another comparison, or this one
            without ``resume``, and a process that dies.

    Examples:
        >>> compare("comparison", load("timm:vit_tiny_patch16_224?pretrained=false"), data="images")
    """
    write_figures = _figures_writer()
    check_variants(tuple(variants))
    _check_numbers(rates, seeds, steps, batch)
    contest = _contest(model, data, labels, seeds)
    options = Options(
        contest.name,
        contest.data_name,
        contest.digest(),
        contest.train.count,
        contest.test.count,
        list(variants),
        [float(rate) for rate in rates],
        seeds,
        steps,
        batch,
    )
    contest.check(variants, batch)
    output = CompareFolder(Path(folder))
    output.begin(options, resume)
    with output.workload(contest, options) as work:
        results = _results(output, work, options, processes or processors(), progress)
        deployed = deploy(output, work, options, progress)
    bench = measure(deployed, contest, batch, progress)
    comparison = Comparison(
        options,
        machine(),
        provenance().versions,
        results,
        [model.figures for model in deployed],
        bench,
        find(results, variants, bench),
    )
    output.finish(comparison, write_figures(output.path, results, variants, bench), command)
    return comparison


def _figures_writer() -> Callable[..., list[str]]:
    """Before any work, for what it raises; matplotlib takes half a second to import."""
    try:
        from normswap.train.study.figures import write_figures
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise NormswapError(
            f"compare: its figures need matplotlib; {install_command('train')}"
        ) from error
    return write_figures


def _contest(model: Model | None, data: Any, labels: Any, seeds: int) -> Contest:
    if model is None:
        if data is not None or labels is not None:
            raise NormswapError("compare: data is for a model of yours; name MODEL too")
        return default_contest(seeds)
    if data is None:
        raise NormswapError(f"{model.name}: compare trains it; give labelled samples, --data DATA")
    return own_contest(model, data, labels, seeds)


def _check_numbers(rates: Sequence[float], seeds: int, steps: int, batch: int) -> None:
    for rate in rates:
        if not 0 < rate < math.inf:
            raise NormswapError(f"--rates: {rate:g} is no learning rate; take positive numbers")
    if not rates or len(set(rates)) != len(rates):
        raise NormswapError("--rates: name one or more learning rates, each once")
    if seeds < 1:
        raise NormswapError(f"--seeds: {seeds} seeds make no run; take 1 or more")
    if steps < 1:
        raise NormswapError(f"--steps: {steps} steps train nothing; take 1 or more")
    if batch < 2:
        raise NormswapError(
            f"--batch: BatchNorm cannot train on batches of {batch}; take 2 or more"
        )


def _results(
    output: CompareFolder,
    work: Workload,
    options: Options,
    processes: int,
    progress: Progress | None,
) -> list[RunResult]:
    """Those of all runs, in a fixed order, whichever of them were there already."""
    runs = [
        Run(variant, rate, seed)
        for seed in range(options.seeds)
        for rate in options.rates
        for variant in options.variants
    ]
    found = {run: result for run in runs if (result := output.runs.read(run)) is not None}
    todo = [run for run in runs if run not in found]
    remaining = Remaining(len(todo))
    if progress:
        progress(len(found), len(runs), "training")
    for result in _do(work, todo, processes):
        found[result.run] = result
        output.log(result)
        output.runs.keep_best_models(options.variants)
        if progress:
            progress(len(found), len(runs), f"{_in_words(result)}; {remaining.after_one()}")
    return [found[run] for run in runs]


def _do(work: Workload, runs: Sequence[Run], processes: int) -> Iterator[RunResult]:
    if processes == 1 or len(runs) < 2:
        return run_here(work, runs)
    return run_in_processes(work, runs, min(processes, len(runs)))


def _in_words(result: RunResult) -> str:
    accuracy = f"{100 * result.accuracy:.1f} %"
    return f"{result.run.name} {result.outcome}, {accuracy}, {result.seconds:.0f} s"
