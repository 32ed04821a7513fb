"""The approximate contract: another function, reported by figures."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.parity.answers import answers_of
from normswap.parity.metrics import ErrorHistogram, Similarity, accuracy, finite_or_none
from normswap.parity.pairing import Pair, Runs, agreeing_finite
from normswap.parity.report import (
    Answers,
    ApproximateOutput,
    OutputErrors,
    Retrieval,
    ValidationReport,
)
from normswap.parity.retrieval import EMBEDDING_NAMES, EmbeddingPairs


def approximate_contract(
    reference: Model,
    candidate: Model,
    batches: Iterable[Mapping[str, Array]],
    labels: Array | None = None,
    given: Collection[str] | None = None,
    runs: Runs = (None, None),
) -> ValidationReport:
    """How close the outputs are: SQNR, cosine, top-1 and top-5 agreement, KL, accuracy, the
    distribution of errors, and for CLIPs retrieval. No tolerance decides.

    ``batches``: feeds by the reference's input names. Top-1 agreement is taken at outputs of rank 2
    with two columns or more; top-5 agreement and KL (class_scores.py) at those of them that hold
    class scores: not one of the two embeddings of a CLIP, nor called ``*embed*`` or ``*features*``.
    Retrieval (retrieval.py) is taken where such embeddings are outputs. ``labels``: integers [N], N
    the rows of all batches together; accuracy is taken at the first output called ``logits*``, or,
    where none is called so, at the first one of rank 2, that has a row per sample and a column per
    label. With labels the texts of an image, to a CLIP, are those of its class: accuracy is
    zero-shot, at the image embeddings, there is no retrieval, and no metric of classes at the
    embeddings and at what compares the samples of a batch. ``given``: the inputs that belong to the
    labels and to one another (all by default), the others being drawn at random; outputs that
    depend on others have no accuracy, and images or texts that do no partners. ``runs``: how both
    models are run, by default as their graphs do.

    Fails for other shapes or dtypes, NaN, infinities of one model alone, outputs that are constant
    in the candidate, and integer outputs that differ. Raises NormswapError for models whose inputs
    or outputs cannot be matched and for labels of another count than the rows.
    """
    approximate = _Approximate(Pair(reference, candidate, runs), labels, given)
    for feeds in batches:
        approximate.add(feeds)
    return approximate.report()


class _Approximate:
    """The approximate contract, one batch after the other."""

    def __init__(self, pair: Pair, labels: Array | None, given: Collection[str] | None) -> None:
        reference = pair.reference
        self._pair = pair
        self._labels = labels
        self._rows = 0
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._dtypes: dict[int, np.dtype[Any]] = {}
        self._similarities = [Similarity() for _ in self._pair.outputs]
        self._scores: dict[int, ClassScores] = {}
        self._histograms: dict[int, ErrorHistogram] = {}
        self._embeddings = EmbeddingPairs.of(reference)
        self._correct: dict[int, list[tuple[float, float, int]]] = {}
        self._classes: dict[int, list[tuple[Array, Array]]] = {}
        foreign = set() if given is None else {s.name for s in reference.inputs} - set(given)
        self._given = [
            not self._pair.depends_on(value) & foreign for value in reference.graph.outputs
        ]

    def add(self, feeds: Mapping[str, Array]) -> None:
        rows = max(len(array) for array in feeds.values() if array.ndim)
        labels = None if self._labels is None else self._labels[self._rows : self._rows + rows]
        self._rows += rows
        results = self._pair.run(feeds, f"rows up to {self._rows}")
        if results is None:
            return
        if self._embeddings:
            self._embeddings.add(feeds, *results)
        for output, (ours, theirs) in enumerate(zip(*results, strict=True)):
            self._shapes[output], self._dtypes[output] = ours.shape, ours.dtype
            if not self._pair.comparable(output, ours, theirs, None):
                continue
            arrays = [np.asarray(a, np.float64) for a in (ours, theirs)]
            if agreeing_finite(arrays) is None:
                counts = [int((~np.isfinite(a)).sum()) for a in arrays]
                message = f"NaN or infinite: {counts[1]} elements, {counts[0]} of the reference's"
                self._pair.found("non_finite", message, self._pair.outputs[output][0])
            self._similarities[output].add(*arrays)
            self._histograms.setdefault(output, ErrorHistogram()).add(*arrays)
            if self._holds_class_scores(output, ours):
                self._scores.setdefault(output, ClassScores()).add(*arrays)
            if labels is not None and self._fits(output, ours, labels):
                shares = [accuracy(a, labels) for a in arrays]
                self._correct.setdefault(output, []).append((shares[0], shares[1], rows))
            if ours.ndim == 2 and len(ours) == rows and ours.size:
                classes = arrays[0].argmax(-1), arrays[1].argmax(-1)
                self._classes.setdefault(output, []).append(classes)

    def _fits(self, output: int, array: Array, labels: Array) -> bool:
        classes = int(np.max(self._labels)) + 1 if self._labels is not None else 0
        rank_2 = array.ndim == 2 and len(array) == len(labels) and array.shape[1] >= classes
        return rank_2 and self._given[output] and self._ranks_classes(output, array.shape)

    def _holds_class_scores(self, output: int, array: Array) -> bool:
        embedding = self._embeddings is not None and output in self._embeddings.outputs
        named = any(name in self._pair.outputs[output][0] for name in EMBEDDING_NAMES)
        return self._ranks_classes(output, array.shape) and not embedding and not named

    def _ranks_classes(self, output: int, shape: tuple[int, ...]) -> bool:
        """Whether the largest element of a row may be a class. It is none where samples have
        classes and columns stand for the samples of the batch, or for an embedding's channels."""
        if len(shape) != 2 or shape[1] < 2:
            return False
        labelled = self._embeddings if self._labels is not None else None
        return labelled is None or (shape[0] != shape[1] and output not in labelled.outputs)

    def report(self) -> ValidationReport:
        if self._labels is not None and len(self._labels) != self._rows:
            raise NormswapError(
                f"there are {len(self._labels)} labels for {self._rows} samples: give one for each"
            )
        zero_shot = self._zero_shot()
        scored = self._scored() if zero_shot is None else None
        outputs = []
        for index, (names, similarity) in enumerate(
            zip(self._pair.outputs, self._similarities, strict=True)
        ):
            ranked = self._ranks_classes(index, self._shapes.get(index, ()))
            scores = self._scores.get(index, ClassScores())
            accuracies = self._accuracies(index) if index == scored else (None, None)
            output = ApproximateOutput(
                *names,
                self._dtypes[index].name if index in self._dtypes else "",
                self._rows,
                finite_or_none(similarity.sqnr_db),
                finite_or_none(similarity.cosine_mean),
                finite_or_none(similarity.cosine_worst),
                finite_or_none(similarity.max_abs_error),
                finite_or_none(similarity.top1_agreement) if ranked else None,
                finite_or_none(scores.top5_agreement),
                finite_or_none(scores.kl_mean),
                *accuracies,
            )
            outputs.append(output if zero_shot is None else zero_shot.at(output))
            if similarity.max_abs_error == 0:
                self._pair.found("identical", "bit-equal in both models", names[0], fatal=False)
        errors = [
            OutputErrors(self._pair.outputs[index][0], None, self._histograms[index].result())
            for index in sorted(self._histograms)
        ]
        report = self._pair.report("approximate", outputs)
        answers = self._answers(scored) if zero_shot is None else zero_shot.answers
        return replace(report, errors=errors, retrieval=self._retrieval(), answers=answers)

    def _retrieval(self) -> Retrieval | None:
        if self._embeddings is None or self._labels is not None:
            return None
        drawn = not all(self._given[output] for output in self._embeddings.outputs)
        return self._embeddings.result(drawn)

    def _zero_shot(self) -> _ZeroShot | None:
        """Where the data holds images and texts of labelled classes."""
        found, labels = self._embeddings, self._labels
        if found is None or labels is None or not all(self._given[i] for i in found.outputs):
            return None
        classes = found.classes(labels)
        name = self._pair.outputs[found.outputs[0]][0]
        return None if classes is None else _ZeroShot(name, *classes, labels[: len(classes[0])])

    def _answers(self, scored: int | None) -> Answers | None:
        """At the output that was scored, else, without labels, at the first of class scores."""
        output = next(iter(self._scores), None) if self._labels is None else scored
        if output is None or output not in self._classes:
            return None
        ours, theirs = map(np.concatenate, zip(*self._classes[output], strict=True))
        if len(ours) != self._rows or self._embeddings is not None:
            return None
        return answers_of(self._pair.outputs[output][0], ours, theirs, self._labels, False)

    def _scored(self) -> int | None:
        """The output whose accuracy the labels give."""
        if self._labels is None:
            return None
        called = [i for i, (n, _) in enumerate(self._pair.outputs) if n.startswith("logits")]
        eligible = [i for i in called or range(len(self._pair.outputs)) if i in self._correct]
        if not eligible:
            message = "no output has a row per sample and a column per label: no accuracy"
            self._pair.found("data", message, fatal=False)
        return eligible[0] if eligible else None

    def _accuracies(self, output: int) -> tuple[float, float]:
        shares = np.array(self._correct[output])
        means = np.average(shares[:, :2], axis=0, weights=shares[:, 2])
        return float(means[0]), float(means[1])


@dataclass(frozen=True)
class _ZeroShot:
    """The classes of a CLIP's images, integers [N], at the output of that name."""

    name: str
    reference: Array
    candidate: Array
    labels: Array

    def at(self, output: ApproximateOutput) -> ApproximateOutput:
        """``output`` with the accuracies, if it is that one."""
        if output.name != self.name:
            return output
        ours, theirs = self.reference, self.candidate
        return replace(
            output,
            top1_agreement=float((ours == theirs).mean()),
            accuracy_reference=float((ours == self.labels).mean()),
            accuracy_candidate=float((theirs == self.labels).mean()),
        )

    @property
    def answers(self) -> Answers:
        return answers_of(self.name, self.reference, self.candidate, self.labels, True)


_TOP = 5
_SUM = 1e-2


def top5_agreement(reference: Array, candidate: Array) -> float:
    """The share of rows, 0 to 1, whose first class in the reference is among the candidate's five
    first: fewer than five classes score higher there, and of those that score the same the first
    come first. A row with NaN in either array does not agree.

    NaN for empty arrays and for fewer than six classes, where it would say nothing.
    Raises ValueError unless both have one shape [rows, classes].
    """
    tally = ClassScores()
    tally.add(reference, candidate)
    return tally.top5_agreement


def kl_divergence(reference: Array, candidate: Array) -> float:
    """KL(reference || candidate) = sum_c p_c log(p_c / q_c) in nats, the mean over rows.

    p and q are the probabilities, of logits their softmax. A probability of zero in the candidate
    counts as float64's smallest normal number, so that the result is finite. NaN for empty arrays,
    for a single class, and where either array holds NaN or infinity.
    Raises ValueError unless both have one shape [rows, classes].
    """
    tally = ClassScores()
    tally.add(reference, candidate)
    return tally.kl_mean


@dataclass
class ClassScores:
    """The metrics above over all pairs of arrays added, as if their rows stood in one array; but
    whether they are probabilities is decided pair by pair."""

    _in_top5: list[Array] = field(default_factory=list)
    _divergences: list[Array] = field(default_factory=list)

    def add(self, reference: Array, candidate: Array) -> None:
        """Counts one pair of arrays."""
        if reference.shape != candidate.shape or reference.ndim != 2:
            raise ValueError(f"class scores of shapes {reference.shape} and {candidate.shape}")
        if not reference.size:
            return
        a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
        self._in_top5.append(_in_top5(a, b))
        self._divergences.append(_divergences(a, b))

    @property
    def top5_agreement(self) -> float:
        return float(np.concatenate(self._in_top5).mean()) if self._in_top5 else math.nan

    @property
    def kl_mean(self) -> float:
        return float(np.concatenate(self._divergences).mean()) if self._divergences else math.nan


def _in_top5(a: Array, b: Array) -> Array:
    """1.0 or 0.0 for each row; NaN where there are too few classes."""
    if a.shape[1] <= _TOP:
        return np.full(len(a), math.nan)
    first = a.argmax(-1)[:, None]
    score = np.take_along_axis(b, first, axis=-1)
    before = (b > score) | ((b == score) & (np.arange(b.shape[1]) < first))
    whole = ~(np.isnan(a) | np.isnan(b)).any(-1)
    return np.asarray((before.sum(-1) < _TOP) & whole, np.float64)


def _divergences(a: Array, b: Array) -> Array:
    """Of each row."""
    if a.shape[1] == 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(len(a), math.nan)
    given = _are_probabilities(a) and _are_probabilities(b)
    p, q = (_log_of_probabilities(x) if given else _log_softmax(x) for x in (a, b))
    # Zero for equal rows, and above it but for rounding.
    return np.maximum((np.exp(p) * (p - q)).sum(-1), 0)


def _are_probabilities(scores: Array) -> bool:
    return bool((scores >= 0).all() and (np.abs(scores.sum(-1) - 1) <= _SUM).all())


def _log_of_probabilities(scores: Array) -> Array:
    smallest = np.finfo(np.float64).tiny
    return np.asarray(np.log(np.maximum(scores / scores.sum(-1, keepdims=True), smallest)))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
