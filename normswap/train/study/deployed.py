"""The best model of each variant, and norm-free forms of LayerNorm's, as they would be used:
folded, exported, measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from normswap.io.data import Data
from normswap.io.load import load
from normswap.io.save import save
from normswap.model import Model, Progress
from normswap.passes.affine import Affine
from normswap.passes.base import Pass
from normswap.passes.fold import Fold
from normswap.passes.predicted import Predicted
from normswap.report.inspection import inspection
from normswap.runtimes.run_in import SUFFIXES
from normswap.timing.bench import bench
from normswap.timing.bench_report import BenchReport
from normswap.timing.paired import one_thread
from normswap.train.study.contest import Contest
from normswap.train.study.folder import TARGETS, CompareFolder, Workload, arrays, without_targets
from normswap.train.study.results import Deployed, Options
from normswap.train.study.run import model_accuracy
from normswap.train.study.variants import AFFINE, LN, PREDICTED, TAKEN_OUT, TITLES, VARIANTS

BATCHES = (1, 8)
"""How many samples at a time are timed."""
_FITTED = 512  # training samples that norm-free forms are fitted to


@dataclass(frozen=True)
class DeployedModel:
    """``model`` carries the title of its variant or form as its name."""

    model: Model
    figures: Deployed


def deploy(
    output: CompareFolder, work: Workload, options: Options, progress: Progress | None
) -> list[DeployedModel]:
    """Exports each variant's best model to ONNX and scores it there; a variant all of whose runs
    stopped has none."""
    made = []
    for done, variant in enumerate(options.variants):
        if progress:
            progress(done, len(options.variants), f"exporting {VARIANTS[variant]}")
        best = output.runs.best(variant)
        if best is not None:
            model = load(output.runs.model(best.run))
            made.append(_deployed(output, work, variant, best.run.name, model))
    return made


def take_out(
    output: CompareFolder, work: Workload, progress: Progress | None
) -> list[DeployedModel]:
    """The best LayerNorm model with its norms taken out afterwards, in each of ``TAKEN_OUT``:
    fitted to training samples, without labels and without training, and folded."""
    best = output.runs.best(LN)
    if best is None:
        return []
    trained = load(output.runs.model(best.run))
    feeds = without_targets(arrays(work.train))
    data = Data({name: np.array(array[:_FITTED]) for name, array in feeds.items()}, None)
    forms: dict[str, Pass] = {
        AFFINE: Affine(data=data, sites="*", refit_writers=True),
        PREDICTED: Predicted(data=data, sites="*"),
    }
    made = []
    for done, (form, swap) in enumerate(forms.items()):
        if progress:
            progress(done, len(forms), f"fitting {TAKEN_OUT[form]}")
        model = Fold()(swap(trained).model).model
        made.append(_deployed(output, work, form, best.run.name, model))
    return made


def _deployed(
    output: CompareFolder, work: Workload, variant: str, run: str, model: Model
) -> DeployedModel:
    test = arrays(work.test)
    feeds, labels = without_targets(test), test[TARGETS]
    model = replace(model, name=TITLES[variant], path=None)
    file = output.path / f"{variant}.onnx"
    save(model, file)
    one = {spec.name: (1, *model.examples[spec.name].shape[1:]) for spec in model.inputs}
    found = inspection(model, one)
    figures = Deployed(
        variant,
        run,
        len(found.sites),
        found.statistics,
        100 * model_accuracy(model, feeds, labels, work.scores),
        100 * model_accuracy(load(file), feeds, labels, work.scores),
        file.name,
    )
    return DeployedModel(model, figures)


def measure(
    deployed: Sequence[DeployedModel], contest: Contest, progress: Progress | None
) -> dict[int, BenchReport]:
    """Times them in every runtime that is installed, by the number of test samples at a time; empty
    without LN or without another to hold against it. On one thread, as they were trained."""
    if len(deployed) < 2 or deployed[0].figures.variant != LN:
        return {}
    runtimes = [name for name in SUFFIXES if importlib.util.find_spec(name) is not None]
    models = [made.model for made in deployed]
    benches = {}
    with one_thread():
        for batch in BATCHES:
            inputs = {name: array[:batch] for name, array in contest.test.feeds.items()}
            benches[batch] = bench(models, runtimes=runtimes, inputs=inputs, progress=progress)
    return benches
