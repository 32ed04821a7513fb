"""``distill``: a swapped model learns to be its original again, without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from normswap import distributed
from normswap.errors import NormswapError
from normswap.fit.moments import ChannelMoments
from normswap.graph.fx.module_tree import deepcopied
from normswap.io.data import LABELS, Data, load_data
from normswap.io.torch_model import model_from_module
from normswap.model import Model, Progress, Step
from normswap.parity.report import ValidationReport
from normswap.parity.validation import validate
from normswap.shown import Shown
from normswap.train.batch_norms import batch_norms, over_group, recalibrate, without_group
from normswap.train.checkpoint import Checkpoints
from normswap.train.loop import Batch, Log, train
from normswap.train.matches import Match, Matches, match
from normswap.train.options import TrainOptions
from normswap.train.progressive import (
    LayerNormOf,
    collapse,
    make_progressive,
    set_share,
    share_at,
)
from normswap.train.samples import Samples, in_folder, in_memory
from normswap.train.sharded_data import shard_samples
from normswap.train.tapered import drop_tapered, make_tapered
from normswap.train.taps import arguments, parameters_of, tapped, without_effect

SAMPLES = 1024
"""How many samples scales, statistics and figures are taken on."""
_BATCH, _RATE, _EPOCHS, _STEPS = 64, 1e-3, 20, (200, 20_000)
_CHUNK = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillResult(Shown):
    """``model``: the trained student. ``losses``: of each step. ``before``, ``after``: the student
    against the teacher, under the approximate contract, on ``samples`` samples of the data.
    ``statistics``: 'running' or 'recalibrated', and the loss with either. ``trained``: how many
    BatchNorms; ``notes``: what the user is to know."""

    view: ClassVar[str] = "normswap.report.terminal:distillation_view"

    model: Model
    losses: list[float]
    before: ValidationReport
    after: ValidationReport
    options: TrainOptions
    samples: int
    statistics: str
    loss_with: dict[str, float]
    trained: int
    resumed_at: int
    seconds: float
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        every = max(len(self.losses) // 200, 1)
        return {
            "steps": len(self.losses),
            "options": vars(self.options),
            "losses": {str(i): self.losses[i] for i in range(0, len(self.losses), every)},
            "samples": self.samples,
            "statistics": self.statistics,
            "loss_with": self.loss_with,
            "batch_norms": self.trained,
            "resumed_at": self.resumed_at,
            "seconds": self.seconds,
            "notes": self.notes,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def default_options(count: int, **given: Any) -> TrainOptions:
    """Options for ``count`` samples: batches of 64, 20 epochs (200 to 20,000 steps), a tenth of the
    steps to warm up; what is ``given`` (not None) goes first."""
    given = {name: value for name, value in given.items() if value is not None}
    batch = given.pop("batch", min(_BATCH, count))
    steps = given.pop("steps", min(max(_EPOCHS * count // batch, _STEPS[0]), _STEPS[1]))
    warm_up = given.pop("warm_up", steps // 10)
    rate = given.pop("learning_rate", _RATE)
    return TrainOptions(steps, batch, rate, warm_up, **given)


def distill(
    student: Model,
    teacher: Model,
    data: Any,
    *,
    samples: int | None = None,
    skip_bad: bool = False,
    labels: bool = False,
    progressive: bool = False,
    residual: bool = False,
    checkpoints: str | Path | None = None,
    every: int = 100,
    resume: bool = False,
    log: Log | None = None,
    progress: Progress | None = None,
    about: Mapping[str, str] | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    warm_up: int | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    accumulate: int | None = None,
    ema: float | None = None,
    seed: int | None = None,
    precision: str | None = None,
) -> DistillResult:
    """Trains ``student`` to give what ``teacher`` gives on ``data``.

    The loss is the mean over the blocks of the error of their outputs, relative to the variance of
    the teacher's, plus for each output of the model the KL divergence of class scores, or the
    cosine distance of embeddings and the divergence of their similarities within the batch, or the
    relative error. Weights that the swap left no error in (the other tower's) stay as they are.
    Under ``torchrun`` the processes share the data, and hold the same student at the end.

    Args:
        student: a torch model of ``swap(..., to="batchnorm")``, not folded.
        teacher: the torch model as it was.
        data: what ``load_data`` takes, or a pattern of WebDataset shards.
        samples: use that many of it.
        skip_bad: leave out images of a folder, and samples of shards, that cannot be used, with
            warnings that name them.
        labels: also learn the data's labels, by cross-entropy.
        progressive: each predicted scale tapers to 1 in the first half of the steps and is gone
            then; each BatchNorm starts as the LayerNorm that it replaces and takes over in the
            first half of the steps.
        residual: with ``progressive``, also SLAB's term alpha * x meanwhile.
        checkpoints: a folder to keep the last one in.
        every: steps between checkpoints.
        resume: go on from the checkpoint, if there is one.
        log: called with what is to be logged of each step.
        progress: ``progress(done, total, what)`` is called for each step.
        about: what is to stand in the student's history.
        steps: updates; by default 20 epochs, 200 to 20,000.
        batch: samples per update; by default 64.
        learning_rate: the highest; by default 0.001.
        warm_up: steps in which it rises from 0; by default a tenth.
        weight_decay: of matrices; by default 0.05.
        clip: the norm that gradients are scaled down to; by default 1.
        accumulate: parts that a batch runs in; by default 1.
        ema: the decay of an average of the weights, which are the result then.
        seed: of the order of samples; by default 0.
        precision: 'float32' (the default) or 'bfloat16', torch's autocast; on a processor
            without bfloat16 the same roundings, computed in float32.

    Returns:
        The trained ``model``, the ``losses``, and how close it is to the teacher ``before`` and
        ``after``. Its BatchNorms are still there: ``fold`` takes them out.

    Raises:
        NormswapError: an ONNX student or teacher, one that does not match or is folded already,
            fewer than two samples, data without labels if they are asked for, batches that do not
            divide among processes, options out of range, and a loss that is not finite.

    Examples:
        >>> student = swap(teacher, BatchNorm(ffn_batchnorm=True), data="images").model
        >>> norm_free = fold(distill(student, teacher, "images").model).model
    """
    with distributed.process_group():
        for model in (student, teacher):
            if model.kind != "fx":
                raise NormswapError(
                    f"{model.name}: an ONNX model cannot be trained; give the torch model (.pt2)"
                )
        found = match(teacher, student)
        source = open_samples(data, student, SAMPLES, samples, skip_bad, progress)
        training = default_options(
            source.count,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            warm_up=warm_up,
            weight_decay=weight_decay,
            clip=clip,
            accumulate=accumulate,
            ema=ema,
            seed=seed,
            precision=precision,
        )
        _check_batch(student, source, training)
        if labels and source.some.labels is None:
            raise NormswapError(f"{source.name}: holds no labels; give some or leave --labels out")
        run = _Run(student, teacher, found, source.some, labels, progressive, residual)
        store = _store(checkpoints, every, resume, run, source, about)
        if store is not None:
            store.check_folder()  # before any work
        before = _figures(teacher, student, source.some, progress)
        result = train(
            run.student,
            run.loss(training),
            source.batches(training),
            training,
            checkpoints=store,
            log=log if distributed.rank() == 0 else None,
            progress=progress,
        )
        statistics, loss_with = run.settle()
        model = run.model(result.losses, statistics)
        after = _figures(teacher, model, source.some, progress)
    return DistillResult(
        model,
        result.losses,
        before,
        after,
        training,
        source.some.count,
        statistics,
        loss_with,
        len(batch_norms(run.module)),
        result.resumed_at,
        result.seconds,
        [*source.notes, *run.notes],
    )


class _Run:
    """A student and its teacher as modules that give the values to compare."""

    def __init__(
        self,
        student: Model,
        teacher: Model,
        found: Matches,
        some: Data,
        labels: bool,
        progressive: bool,
        residual: bool,
    ) -> None:
        self._original, self._found, self._labels = student, found, labels
        self._some, self._progressive = some, progressive
        self.notes: list[str] = []
        device = distributed.device()
        self.module = student.to_torch().to(device)
        if progressive:
            norms = {name: LayerNormOf.at(site) for name, site in found.norms.items()}
            make_progressive(self.module, norms, residual)
            if tapered := make_tapered(self.module):
                self.notes.append(f"{tapered} predicted scales tapered to 1 and are gone")
        over_group(self.module)
        matches = [*found.blocks, *found.outputs]
        self.student = tapped(self.module, [m.theirs.name for m in matches])
        self.teacher = tapped(teacher.to_torch().to(device), [m.ours.name for m in matches]).eval()
        self._freeze()
        for name in arguments(self.student):
            if name not in some.feeds:
                raise NormswapError(
                    f"{student.name}: the data lacks '{name}', which what is compared depends on; "
                    f"it holds {', '.join(some.feeds)}"
                )
        self.variances = self._variances()
        self._freeze_what_has_no_effect()

    @property
    def matches(self) -> list[Match]:
        return [*self._found.blocks, *self._found.outputs]

    def _freeze(self) -> None:
        """Weights that outputs without an error depend on stay as they are."""
        fixed = parameters_of(self.module, [value.name for value in self._found.unchanged])
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        frozen = 0
        for name, parameter in self.student.named_parameters():
            owner = name.rpartition(".")[0]
            if name in fixed or owner in fixed:
                parameter.requires_grad_(False)
                frozen += 1
        if frozen:
            self.notes.append(
                f"{frozen} weights stay as they are: the swap changed no output of theirs"
            )

    def _freeze_what_has_no_effect(self) -> None:
        names = distributed.from_first(self._without_effect())
        for name in names:
            self.student.get_parameter(name).requires_grad_(False)
        if names:
            self.notes.append(f"{len(names)} weights stay as they are: nothing depends on them")

    def _without_effect(self) -> list[str]:
        """Found on one batch in float64; none where a part of the graph insists on float32."""
        batch = next(self._batches())
        doubled = {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}
        student, teacher = deepcopied(self.student).double().train(), self.teacher
        set_share(student, 0.5)  # both halves of a progressive norm count
        self.teacher = deepcopied(teacher).double()
        try:
            return without_effect(student, self.compare(student, doubled))
        except RuntimeError:
            return []
        finally:
            self.teacher = teacher

    @torch.no_grad()
    def _variances(self) -> list[float]:
        """Of each of the teacher's values, over the samples, about the mean of each channel."""
        moments = [ChannelMoments() for _ in self.matches]
        for batch in self._batches():
            for total, value in zip(moments, self._taught(batch), strict=True):
                total.add(value.float().cpu().numpy(), -1)
        return [float(total.variance.mean()) for total in moments]

    def _batches(self) -> Iterator[Batch]:
        device = next(self.student.parameters()).device
        labels = {} if self._some.labels is None else {LABELS: self._some.labels}
        whole = Data({**self._some.feeds, **labels}, None)
        for feeds in whole.batches(_CHUNK):
            yield {n: torch.from_numpy(np.array(a)).to(device) for n, a in feeds.items()}

    def _taught(self, batch: Batch) -> Sequence[torch.Tensor]:
        return self.teacher(**{name: batch[name] for name in arguments(self.teacher)})

    def loss(self, options: TrainOptions) -> Callable[[nn.Module, Batch, int], torch.Tensor]:
        def at(module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
            if self._progressive:
                set_share(self.student, share_at(step, options.steps))
            return self.compare(module, batch)

        return at

    def compare(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of the student ``module`` on a batch."""
        with torch.no_grad():
            ours = self._taught(batch)
        theirs = module(**{name: batch[name] for name in arguments(self.student)})
        blocks = len(self._found.blocks)
        total = torch.zeros((), device=theirs[0].device)
        for index, found in enumerate(self.matches):
            a, b, variance = ours[index], theirs[index], self.variances[index]
            if a.shape != b.shape:
                raise NormswapError(
                    f"{self._original.name}: '{found.theirs.name}' is {tuple(b.shape)} where the "
                    f"teacher's is {tuple(a.shape)}; distil from the model that was swapped"
                )
            if found.kind == "block":
                total = total + relative_error(a, b, variance) / blocks
            elif found.kind == "scores":
                total = total + score_divergence(a, b)
                if self._labels and a.shape[1] > int(batch[LABELS].max()):
                    total = total + nn.functional.cross_entropy(b.float(), batch[LABELS])
            elif found.kind == "embedding":
                partner = self._found.partners.get(index - blocks)
                keys = distributed.all_rows(a if partner is None else ours[blocks + partner])
                total = total + cosine_distance(a, b)
                total = total + similarity_divergence(a, b, keys)
            else:
                total = total + relative_error(a, b, variance)
        return total

    @torch.no_grad()
    def settle(self) -> tuple[str, dict[str, float]]:
        """Ends the training: plain BatchNorms, whose statistics are the running ones or taken anew,
        whichever gives the lower loss on the samples."""
        set_share(self.student, 0.0)
        without_group(self.module)
        collapse(self.module)
        drop_tapered(self.module)
        self.student = tapped(self.module, [m.theirs.name for m in self.matches]).eval()
        norms = batch_norms(self.student)
        loss_with = {"running": self._loss()}
        kept = {n: (b.running_mean.clone(), b.running_var.clone()) for n, b in norms.items()}  # type: ignore[union-attr]
        recalibrate(self.student, self._batches(), self._forward)
        loss_with["recalibrated"] = self._loss()
        if loss_with["running"] <= loss_with["recalibrated"]:
            for name, norm in norms.items():
                norm.running_mean.copy_(kept[name][0])  # type: ignore[union-attr]
                norm.running_var.copy_(kept[name][1])  # type: ignore[union-attr]
        return min(loss_with, key=lambda name: loss_with[name]), loss_with

    def _forward(self, module: nn.Module, batch: Batch) -> object:
        return module(**{name: batch[name] for name in arguments(self.student)})

    def _loss(self) -> float:
        rows = total = 0.0
        for batch in self._batches():
            count = len(next(iter(batch.values())))
            total += count * float(self.compare(self.student, batch))
            rows += count
        return total / rows

    def model(self, curve: Sequence[float], statistics: str) -> Model:
        self.module.to("cpu").eval()
        model = model_from_module(
            fx.GraphModule(self.module, self.module.graph), self._original.name
        )
        note = (
            f"{len(curve)} steps, loss {curve[0]:.4g} to {curve[-1]:.4g}, {statistics} statistics"
        )
        step = Step("distillation", len(batch_norms(self.module)), [], [note])
        old = self._original
        return replace(old, graph=model.graph, path=None, history=(*old.history, step))


def open_samples(
    source: Any,
    model: Model,
    some: int,
    samples: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """The samples of what ``load_data`` takes, or of shards that a pattern ending in .tar names.

    ``some`` of them are at hand. ``samples``: take that many only; not of shards. ``skip_bad``:
    leave out what cannot be used. Of several processes each reads from shards, and from a folder
    of which nothing is left out, only what it trains on.
    Raises NormswapError for what ``load_data`` and ``shard_samples`` refuse.
    """
    if isinstance(source, str) and source.endswith(".tar"):
        return shard_samples(source, model, some, samples, skip_bad)
    name = str(source) if isinstance(source, str | Path) else "data"
    folder = isinstance(source, str | Path) and Path(source).is_dir()
    if folder and distributed.world() > 1 and not skip_bad:  # each step needs its whole batch
        return in_folder(Path(source), model, some, samples)
    given = isinstance(source, Data) and samples is None
    data = source if given else load_data(source, model, samples, 0, skip_bad, progress)
    return in_memory(data, name, some)


def _check_batch(student: Model, samples: Samples, options: TrainOptions) -> None:
    parts = distributed.world() * options.accumulate
    if samples.count < 2:
        raise NormswapError(
            f"{samples.name}: holds one sample; a BatchNorm needs at least two to train on"
        )
    if options.batch > samples.count:
        raise NormswapError(
            f"{samples.name}: holds {samples.count} samples, fewer than a batch of "
            f"{options.batch}; take a smaller --batch"
        )
    if options.batch % parts:
        raise NormswapError(
            f"--batch {options.batch}: does not divide into {distributed.world()} processes of "
            f"{options.accumulate} parts; take a multiple of {parts}"
        )
    each = options.batch // parts
    if each < 2:
        raise NormswapError(
            f"--batch {options.batch}: leaves {each} sample at a time; a BatchNorm needs at least "
            f"two to train on"
        )
    for spec in student.inputs:
        size = spec.shape[0] if spec.shape else "batch"
        if isinstance(size, int) and size != each and spec.name in samples.some.feeds:
            raise NormswapError(
                f"{student.name}: takes batches of {size}; take --batch {size * parts}"
            )


def _store(
    folder: str | Path | None,
    every: int,
    resume: bool,
    run: _Run,
    samples: Samples,
    about: Mapping[str, str] | None,
) -> Checkpoints | None:
    if folder is None:
        if resume:
            raise NormswapError("--resume: needs the folder of the checkpoints; give --checkpoints")
        return None
    known = {"data": samples.name, "samples": str(samples.count), **(about or {})}
    known["labels"] = str(run._labels)
    known["progressive"] = str(run._progressive)
    return Checkpoints(Path(folder), every, resume, known)


def _figures(
    teacher: Model, student: Model, some: Data, progress: Progress | None
) -> ValidationReport:
    return validate(teacher, student, data=some, contract="approximate", progress=progress)


TEMPERATURE = 0.07
"""Of similarities: what CLIP's training starts with (Radford et al., 2021)."""


def relative_error(ours: torch.Tensor, theirs: torch.Tensor, variance: float) -> torch.Tensor:
    """mean((theirs - ours)^2) / variance; the variance of the teacher's value over the data."""
    return (theirs.float() - ours.float()).square().mean() / max(variance, 1e-12)


def score_divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of class scores [N, C], mean over rows (Hinton et al., 2015, at
    temperature 1)."""
    target = functional.log_softmax(ours.float(), -1)
    return functional.kl_div(
        functional.log_softmax(theirs.float(), -1), target, reduction="batchmean", log_target=True
    )


def cosine_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """1 - cosine, mean over the rows of [N, D]."""
    return 1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()


def similarity_divergence(
    ours: torch.Tensor, theirs: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """KL of how embeddings [N, D] spread over ``keys`` [K, D], the teacher's for the whole batch:
    softmax of cosines over the temperature. A contrastive loss whose targets are the teacher's
    similarities, so that no pairs are needed.
    """
    keys = functional.normalize(keys.float(), dim=-1)
    scores = [
        functional.normalize(x.float(), dim=-1) @ keys.T / TEMPERATURE for x in (ours, theirs)
    ]
    return score_divergence(*scores)
