"""``compare``: LayerNorm against BatchNorm, trained from the same initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.io.glyphs import PREFIX, SIZE
from normswap.model import Model, Progress
from normswap.parity.summary import provenance
from normswap.runtimes.machine import machine, processors
from normswap.train.study.contest import Contest, deit_contest, digits_contest, own_contest
from normswap.train.study.deployed import deploy, measure, take_out
from normswap.train.study.folder import CompareFolder, Workload
from normswap.train.study.results import DEIT, GRID, Comparison, Options, find
from normswap.train.study.runs import Run, RunResult
from normswap.train.study.schedule import Budget, Grid, Schedule, UpToTheFirstFailure
from normswap.train.study.variants import VARIANTS, check_variants
from normswap.train.study.workers import Remaining, run_as_scheduled

CLASSES, WIDTH, PATCH = 60, 96, 8


@dataclass(frozen=True)
class Study:
    """What is taken where nothing else is given. ``rates``: of 'deit' the first one alone."""

    rates: Sequence[float]
    seeds: int
    steps: int
    batch: int


STUDIES = {
    GRID: Study((0.002, 0.008, 0.03, 0.1), seeds=4, steps=400, batch=32),
    DEIT: Study((0.001,), seeds=3, steps=400, batch=32),
}


def compare(
    folder: str | Path,
    model: Model | None = None,
    *,
    data: Any = None,
    labels: Any = None,
    study: str = GRID,
    width: int | None = None,
    patch: int | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    hours: float | None = None,
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
            kept back to test on, a fifth of the others to choose the rates on.
        labels: integers [N].
        study: 'grid', or 'deit': a ViT of DeiT's depth on ``data`` 'glyphs:CLASSES' (60), its
            rates doubled until the first variant fails. More seeds follow around that rate and at
            the best ones, then runs there without warm-up, with clipping, and in bfloat16.
        width: of the ViT of 'deit'; by default 96.
        patch: the sides of its patches; by default 8 pixels, so 17 tokens.
        variants: of 'ln', 'bn', 'bn-ffn' and 'repbn', with 'ln'.
        rates: the highest learning rates; of 'deit' the first one.
        seeds: runs of each variant at each rate; by default 4, of 'deit' 3.
        steps: updates of a run; by default 400.
        batch: samples per update, 2 or more; by default 32.
        hours: begin no run that would not end within them, going by those before it; ``resume``
            goes on another time. Exporting and timing come on top, some minutes.
        processes: as many runs at a time, one thread each; by default as there are processors.
        resume: go on with what is in ``folder``.
        command: what makes it again, to stand in the page.
        progress: ``progress(done, total, what)`` is called for each run.

    Returns:
        The runs, the figures of the best models, their times, and the findings.

    Raises:
        NormswapError: matplotlib is missing, options out of range, data without labels, a model
            that cannot be trained or swapped, a folder that holds another comparison, or this one
            without ``resume``, too few hours for a run of each variant, and a process that dies.

    Examples:
        >>> compare("comparison", load("timm:vit_tiny_patch16_224?pretrained=false"), data="images")
        >>> compare("deit", study="deit", hours=3)
    """
    write_figures = _figures_writer()
    check_variants(tuple(variants))
    if study not in STUDIES:
        raise NormswapError(f"--study: '{study}' is none of {', '.join(STUDIES)}")
    usual = STUDIES[study]
    rates = list(usual.rates if rates is None else rates)
    seeds, steps, batch = (
        getattr(usual, name) if given is None else given
        for name, given in (("seeds", seeds), ("steps", steps), ("batch", batch))
    )
    _check_numbers(study, rates, seeds, steps, batch, hours)
    contest = _contest(study, model, data, labels, width, patch, seeds)
    options = Options(
        study,
        contest.name,
        contest.data_name,
        contest.digest(),
        contest.train.count,
        contest.validation.count,
        contest.test.count,
        list(variants),
        [float(rate) for rate in rates],
        seeds,
        steps,
        batch,
    )
    contest.check(variants, batch)
    schedule = _schedule(options)
    output = CompareFolder(Path(folder))
    output.begin(options, resume)
    with output.workload(contest, options) as work:
        found = {result.run: result for result in output.runs.all()}
        count = processes or processors()
        _train(output, work, options, schedule, Budget(hours), found, count, progress)
        _check_all(folder, found, variants)
        results = [found[run] for run in sorted(found, key=options.order)]
        deployed = deploy(output, work, options, progress)
        taken_out = take_out(output, work, progress)
    benches = measure([*deployed, *taken_out], contest, progress)
    comparison = Comparison(
        options,
        machine(),
        provenance().versions,
        results,
        len(schedule.due(found)),
        [model.figures for model in deployed],
        [model.figures for model in taken_out],
        benches,
        find(results, variants, benches),
    )
    output.finish(comparison, write_figures(output.path, results, variants, benches), command)
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


def _contest(
    study: str,
    model: Model | None,
    data: Any,
    labels: Any,
    width: int | None,
    patch: int | None,
    seeds: int,
) -> Contest:
    if study == DEIT:
        if model is not None or labels is not None:
            raise NormswapError(f"--study {DEIT}: has a model of its own; give no MODEL, no labels")
        source = f"{PREFIX}{CLASSES}" if data is None else data
        if not isinstance(source, str) or not source.startswith(PREFIX):
            raise NormswapError(f"--study {DEIT}: trains on glyphs; --data takes {PREFIX}CLASSES")
        patch = PATCH if patch is None else patch
        if not 1 < patch < SIZE or SIZE % patch:
            raise NormswapError(f"--patch: {patch} does not divide {SIZE}; take 2, 4, 8 or 16")
        return deit_contest(source, WIDTH if width is None else width, patch, seeds)
    for name, value in {"width": width, "patch": patch}.items():
        if value is not None:
            raise NormswapError(f"--{name}: is for --study {DEIT}; a MODEL has its own")
    if model is None:
        if data is not None or labels is not None:
            raise NormswapError("compare: data is for a model of yours; name MODEL too")
        return digits_contest(seeds)
    if data is None:
        raise NormswapError(f"{model.name}: compare trains it; give labelled samples, --data DATA")
    return own_contest(model, data, labels, seeds)


def _schedule(options: Options) -> Schedule:
    if options.study == DEIT:
        return UpToTheFirstFailure(options.variants, options.rates[0], options.seeds)
    return Grid(options.variants, options.rates, options.seeds)


def _check_numbers(
    study: str, rates: Sequence[float], seeds: int, steps: int, batch: int, hours: float | None
) -> None:
    for rate in rates:
        if not 0 < rate < math.inf:
            raise NormswapError(f"--rates: {rate:g} is no learning rate; take positive numbers")
    if not rates or len(set(rates)) != len(rates):
        raise NormswapError("--rates: name one or more learning rates, each once")
    if study == DEIT and len(rates) > 1:
        raise NormswapError(f"--rates: --study {DEIT} doubles one rate; name the lowest alone")
    if seeds < 1:
        raise NormswapError(f"--seeds: {seeds} seeds make no run; take 1 or more")
    if steps < 1:
        raise NormswapError(f"--steps: {steps} steps train nothing; take 1 or more")
    if batch < 2:
        raise NormswapError(
            f"--batch: BatchNorm cannot train on batches of {batch}; take 2 or more"
        )
    if hours is not None and not 0 < hours < math.inf:
        raise NormswapError(f"--hours: {hours:g} is no time; take a positive number")


def _train(
    output: CompareFolder,
    work: Workload,
    options: Options,
    schedule: Schedule,
    budget: Budget,
    found: dict[Run, RunResult],
    processes: int,
    progress: Progress | None,
) -> None:
    """Adds what is missing to ``found``."""
    remaining = Remaining()
    if progress:
        progress(len(found), len(found) + len(schedule.due(found)), "training")
    for result in run_as_scheduled(work, schedule, found, budget, processes):
        found[result.run] = result
        output.log(result)
        output.runs.keep_best_models(options.variants)
        if progress:
            todo = len(schedule.due(found))
            pace = remaining.after_one(todo)
            progress(len(found), len(found) + todo, f"{_in_words(result)}; {pace}")


def _check_all(folder: str | Path, found: Mapping[Run, RunResult], variants: Sequence[str]) -> None:
    trained = {run.variant for run in found}
    if missing := [name for name in variants if name not in trained]:
        raise NormswapError(
            f"{folder}: the hours ended before a run of {missing[0]}; go on with --resume"
        )


def _in_words(result: RunResult) -> str:
    accuracy = f"{100 * result.accuracy:.1f} %"
    return f"{result.run.name} {result.outcome}, {accuracy}, {result.seconds:.0f} s"
