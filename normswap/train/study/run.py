"""One run of a comparison: a variant is trained, scored and folded, in whatever process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree

from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.io.load import load
from normswap.io.save import save
from normswap.model import Model
from normswap.parity.validation import validate
from normswap.passes.fold import Fold
from normswap.train.batch_norms import batch_norms, own_statistics
from normswap.train.divergence import Diverged
from normswap.train.loop import Batch, train
from normswap.train.progressive import collapse, set_share, share_at
from normswap.train.samples import shuffled
from normswap.train.study.folder import (
    TARGETS,
    Workload,
    arrays,
    start_model,
    without_targets,
)
from normswap.train.study.runs import (
    CRASHED,
    Folded,
    Run,
    RunFiles,
    RunResult,
    better,
    final_loss,
    guessing_loss,
    outcome,
)
from normswap.train.study.variants import LN, untrained
from normswap.train.study.vitals import VitalSigns

_CALIBRATION = 64  # samples that the first running statistics come from; training replaces them


def compared_run(work: Workload, run: Run) -> RunResult:
    """Trains, scores, folds and validates; writes the result, and the model (a BatchNorm variant's
    folded) of a plain run unless a better one of the variant is there already.

    Raises NormswapError for a model that cannot be made into the variant, or a disk that is full.
    """
    began, began_cpu = time.monotonic(), time.process_time()
    start = start_model(work.start[run.seed])
    data, test, validation = (arrays(p) for p in (work.train, work.test, work.validation))
    feeds, labels = without_targets(test), test[TARGETS]
    first = {n: np.array(a[:_CALIBRATION]) for n, a in without_targets(data).items()}
    module = untrained(run.variant, start, Data(first, None))
    signs = VitalSigns(module, start, first, work.steps)
    losses: list[float] = []

    def log(entry: Mapping[str, Any]) -> None:
        losses.append(entry["loss"])
        signs(entry)

    model, folded, stopped, batch_accuracy = None, None, None, None
    accuracy, validation_accuracy = map(most_frequent, (labels, validation[TARGETS]))
    batches = shuffled(data, work.batch, run.seed)
    try:
        train(module, _Loss(work), batches, work.options(run), log=log)
    except Diverged as error:
        stopped = error
        signs.measure(error.step, error.loss, math.nan)
    else:
        collapse(module)
        accuracy = module_accuracy(module, feeds, labels, work.scores)
        validation_accuracy = module_accuracy(
            module, without_targets(validation), validation[TARGETS], work.scores
        )
        if norms := batch_norms(module).values():
            with own_statistics(norms):
                batch_accuracy = mixed_accuracy(module, feeds, labels, work)
        examples = {name: torch.from_numpy(array[:2]) for name, array in first.items()}
        model = load(module, example_inputs=examples)
        if run.variant != LN:
            trained, model = model, Fold()(model).model
            folded = Folded(
                norms_left=len(model.sites),
                exact=validate(trained, model).passed,
                accuracy=model_accuracy(model, feeds, labels, work.scores),
            )
    ended = final_loss(losses) if losses else math.nan
    how = outcome(losses, stopped is None, guessing_loss(data[TARGETS]))
    result = RunResult(
        run,
        how,
        losses,
        ended if math.isfinite(ended) else None,
        accuracy,
        validation_accuracy,
        time.monotonic() - began,
        time.process_time() - began_cpu,
        batch_accuracy,
        None if stopped is None else str(stopped),
        None if stopped is None else stopped.step,
        None if stopped is None else stopped.site,
        folded,
        signs.records,
        signs.onset() if how in CRASHED else None,
    )
    _keep(RunFiles(work.runs), result, model)
    return result


class _Loss:
    """Cross-entropy; of a progressive variant with the share of LN that the step has."""

    def __init__(self, work: Workload) -> None:
        self._work = work

    def __call__(self, module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        set_share(module, share_at(step, self._work.steps))
        feeds = {name: tensor for name, tensor in batch.items() if name != TARGETS}
        scores = pytree.tree_leaves(module(**feeds))[self._work.scores]
        return cross_entropy(scores.float(), batch[TARGETS].long())


def _keep(files: RunFiles, result: RunResult, model: Model | None) -> None:
    """The model goes to disk before the result, so that a result has its model."""
    if model is not None and result.plain:
        best = files.best(result.run.variant)
        if best is None or better(result, best):
            save(model, files.model(result.run))
    files.write(result)


_BATCH = 256


@torch.no_grad()
def module_accuracy(
    module: nn.Module, feeds: Mapping[str, Array], labels: Array, scores: int
) -> float:
    """The share of ``labels`` [N] at which output number ``scores`` [N, C] is highest."""

    def answer(part: Mapping[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(array) for name, array in part.items()}
        return np.asarray(pytree.tree_leaves(module(**tensors))[scores].argmax(-1))

    return _share(answer, feeds, labels)


def mixed_accuracy(
    module: nn.Module, feeds: Mapping[str, Array], labels: Array, work: Workload
) -> float:
    """``module_accuracy`` over batches as large as in training, and as mixed."""
    order = np.random.default_rng(0).permutation(len(labels))
    right = 0.0
    for part in np.array_split(order, max(1, len(order) // work.batch)):
        some = {name: array[part] for name, array in feeds.items()}
        right += len(part) * module_accuracy(module, some, labels[part], work.scores)
    return right / len(labels)


def model_accuracy(model: Model, feeds: Mapping[str, Array], labels: Array, scores: int) -> float:
    """The same of a ``Model``, of either kind."""
    return _share(lambda part: list(model.run(part).values())[scores].argmax(-1), feeds, labels)


def most_frequent(labels: Array) -> float:
    """The share of the most frequent label: what always answering the same gets right."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _share(
    answer: Callable[[Mapping[str, Array]], Array], feeds: Mapping[str, Array], labels: Array
) -> float:
    right = 0
    for first in range(0, len(labels), _BATCH):
        part = {name: np.array(array[first : first + _BATCH]) for name, array in feeds.items()}
        right += int((answer(part) == labels[first : first + _BATCH]).sum())
    return right / len(labels)
