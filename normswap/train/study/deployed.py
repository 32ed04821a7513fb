"""The best model of each variant as it would be used: folded, exported, measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

from normswap.io.load import load
from normswap.io.save import save
from normswap.model import Model, Progress
from normswap.report.inspection import inspection
from normswap.runtimes.run_in import SUFFIXES
from normswap.timing.bench import bench
from normswap.timing.bench_report import BenchReport
from normswap.timing.paired import one_thread
from normswap.train.study.contest import Contest
from normswap.train.study.folder import TARGETS, CompareFolder, Workload, arrays, without_targets
from normswap.train.study.results import Deployed, Options
from normswap.train.study.run import model_accuracy
from normswap.train.study.variants import LN, VARIANTS


@dataclass(frozen=True)
class DeployedModel:
    """``model`` carries the variant's title as its name."""

    model: Model
    figures: Deployed


def deploy(
    output: CompareFolder, work: Workload, options: Options, progress: Progress | None
) -> list[DeployedModel]:
    """Exports each variant's best model to ONNX and scores it there; a variant all of whose runs
    stopped has none."""
    test = arrays(work.test)
    feeds, labels = without_targets(test), test[TARGETS]
    made = []
    for done, variant in enumerate(options.variants):
        if progress:
            progress(done, len(options.variants), f"exporting {VARIANTS[variant]}")
        best = output.runs.best(variant)
        if best is None:
            continue
        model = replace(load(output.runs.model(best.run)), name=VARIANTS[variant], path=None)
        file = output.path / f"{variant}.onnx"
        save(model, file)
        one = {spec.name: (1, *model.examples[spec.name].shape[1:]) for spec in model.inputs}
        found = inspection(model, one)
        figures = Deployed(
            variant,
            best.run.name,
            len(found.sites),
            found.statistics,
            100 * model_accuracy(model, feeds, labels, work.scores),
            100 * model_accuracy(load(file), feeds, labels, work.scores),
            file.name,
        )
        made.append(DeployedModel(model, figures))
    return made


def measure(
    deployed: Sequence[DeployedModel], contest: Contest, batch: int, progress: Progress | None
) -> BenchReport | None:
    """Times them in every runtime that is installed, on ``batch`` test samples; None without LN or
    without another to hold against it. On one thread, as they were trained."""
    if len(deployed) < 2 or deployed[0].figures.variant != LN:
        return None
    runtimes = [name for name in SUFFIXES if importlib.util.find_spec(name) is not None]
    inputs = {name: array[:batch] for name, array in contest.test.feeds.items()}
    models = [made.model for made in deployed]
    with one_thread():
        return bench(models, runtimes=runtimes, inputs=inputs, progress=progress)
