"""The two contracts for "it still works": exact, judged in float64, and approximate, reported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.arrays import is_floating
from normswap.graph.graph import Array
from normswap.io.messages import first_line
from normswap.model import InputSpec, Model
from normswap.validate.metrics import ErrorTally, Similarity, Variation, accuracy
from normswap.validate.probes import Neighbours, Probe
from normswap.validate.report import (
    ApproximateOutput,
    ExactOutput,
    Finding,
    ModelSummary,
    ProbeErrors,
    ValidationReport,
)

Progress = Callable[[int, int, str], None]
Run = Callable[[Mapping[str, Array]], list[Array]]
_FACTOR = 2.0
_ULPS = 1.0
_DOUBLE_ULPS = 64.0  # of a float64 output, whose own error nothing here can measure
# In doubt, draws of the original's neighbours: some, and the rest unless the error is hopelessly
# many times its bound.
_SOME, _ALL, _HOPELESS = 2, 16, 8.0


def exact_contract(
    reference: Model,
    candidate: Model,
    probes: Sequence[Probe],
    progress: Progress | None = None,
) -> ValidationReport:
    """Whether ``candidate`` computes the function of ``reference``, up to rounding.

    Truth is ``reference`` evaluated in float64. For every output and kind of probe
    e(candidate) <= 2 e(original) + one ulp, for e the largest error and for e the root mean square,
    over all probes of the kind; ulp = eps(output dtype) * max |truth| (64 of them for float64).

    Why so: the rms sees small dense faults, the largest error sparse ones, but one draw of it is
    noisy (one sensitive row can decide), so in doubt e(original) is its largest value over up to
    16 more runs of the original with inputs and biases off by an ulp: its error, not its luck.

    ``probes``: feeds by the reference's input names. Inputs and outputs of the two models are
    matched by name where the names agree and by position otherwise. Integer outputs must be equal.
    Raises NormswapError for models whose inputs or outputs cannot be matched, or whose reference
    cannot be evaluated in float64.
    """
    exact = _Exact(reference, candidate)
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        groups.setdefault(probe.name, []).append(probe)
    for done, (kind, group) in enumerate(groups.items()):
        if progress:
            progress(done, len(groups), kind)
        exact.examine(kind, group)
    if progress:
        progress(len(groups), len(groups), "done")
    return exact.report()


def approximate_contract(
    reference: Model,
    candidate: Model,
    batches: Iterable[Mapping[str, Array]],
    labels: Array | None = None,
    given: Collection[str] | None = None,
) -> ValidationReport:
    """How close the outputs are: SQNR, cosine, top-1 agreement, accuracy. No tolerance decides.

    ``batches``: feeds by the reference's input names. Top-1 agreement is taken at outputs of rank 2
    with two columns or more. ``labels``: integers [N], N the rows of all batches together; accuracy
    is taken at the first output called ``logits*``, or, where none is called so, at the first one
    of rank 2, that has a row per sample and a column per label. ``given``: the inputs that belong
    to the labels (all by default); outputs that depend on others have no accuracy.

    Fails for other shapes or dtypes, NaN, infinities of one model alone, outputs that are constant
    in the candidate, and integer outputs that differ. Raises NormswapError for models whose inputs
    or outputs cannot be matched and for labels of another count than the rows.
    """
    approximate = _Approximate(reference, candidate, labels, given)
    for feeds in batches:
        approximate.add(feeds)
    return approximate.report()


def shared_inputs(reference: Model, candidate: Model) -> tuple[InputSpec, ...]:
    """The reference's inputs with every size fixed that either model fixes.

    Raises NormswapError naming both models where no input can fit both.
    """
    names = _matched("inputs", reference, candidate)
    others = {spec.name: spec for spec in candidate.inputs}
    fixed: dict[str, int] = {}
    for spec in reference.inputs:
        other = others[names[spec.name]]
        both = f"{reference.name}'s input '{spec.name}' and {candidate.name}'s '{other.name}'"
        if spec.dtype != other.dtype:
            raise NormswapError(f"{both} differ: {spec.dtype.name} and {other.dtype.name}")
        pairs = list(zip(spec.shape, other.shape, strict=False))
        unfit = [a != b for a, b in pairs if not isinstance(a, str) and not isinstance(b, str)]
        if len(spec.shape) != len(other.shape) or any(unfit):
            sizes = " and ".join("x".join(map(str, s.shape)) for s in (spec, other))
            raise NormswapError(f"{both} differ: {sizes}")
        fixed |= {a: b for a, b in pairs if isinstance(a, str) and not isinstance(b, str)}
    return tuple(
        replace(s, shape=tuple(fixed.get(n, n) if isinstance(n, str) else n for n in s.shape))
        for s in reference.inputs
    )


def _matched(what: str, reference: Model, candidate: Model) -> dict[str, str]:
    """The candidate's input or output for each of the reference's."""
    if what == "inputs":
        ours, theirs = ([spec.name for spec in m.inputs] for m in (reference, candidate))
    else:
        ours, theirs = list(reference.output_names), list(candidate.output_names)
    if len(ours) != len(theirs):
        raise NormswapError(
            f"{reference.name} has {len(ours)} {what} ({', '.join(ours)}) and {candidate.name} has "
            f"{len(theirs)} ({', '.join(theirs)}): they cannot be compared"
        )
    rest = iter([name for name in theirs if name not in ours])
    return {name: name if name in theirs else next(rest) for name in ours}


class _Failed(Exception):
    """A model could not be run; ``args[0]`` says why."""


class _Pair:
    """Two models with their inputs and outputs matched, and what was found so far."""

    def __init__(self, reference: Model, candidate: Model) -> None:
        shared_inputs(reference, candidate)
        self.reference, self.candidate = reference, candidate
        self.findings: list[Finding] = []
        self._inputs = _matched("inputs", reference, candidate)
        names = _matched("outputs", reference, candidate)
        self.outputs = list(names.items())
        self._order = [candidate.output_names.index(name) for name in names.values()]
        self._run_reference, self._run_candidate = _runner(reference), _runner(candidate)
        self._variations = [(Variation(), Variation()) for _ in self.outputs]
        self.ran = False

    def run(self, feeds: Mapping[str, Array], probe: str) -> tuple[list[Array], list[Array]] | None:
        """The outputs of both models, matched; None (and a finding) where one of them fails."""
        try:
            ours = self._run_reference(feeds)
        except _Failed as failure:
            message = f"the reference cannot run: {failure}"
            self.found("failed", message, probe=probe, fatal=False)
            return None
        self.ran = True
        try:
            results = self._run_candidate({self._inputs[n]: a for n, a in feeds.items()})
        except _Failed as failure:
            self.found("failed", f"the candidate cannot run: {failure}", probe=probe)
            return None
        theirs = [results[index] for index in self._order]
        for variations, *arrays in zip(self._variations, ours, theirs, strict=True):
            for variation, array in zip(variations, arrays, strict=True):
                variation.add(array)
        return ours, theirs

    def comparable(self, output: int, ours: Array, theirs: Array, probe: str | None) -> bool:
        """Whether errors can be computed; findings for shapes, dtypes and integers that differ."""
        name = self.outputs[output][0]
        if ours.dtype != theirs.dtype:
            self.found("dtype", f"{ours.dtype.name} became {theirs.dtype.name}", name)
        if ours.shape != theirs.shape:
            self.found("shape", f"{_sizes(ours)} became {_sizes(theirs)}", name, probe)
            return False
        if is_floating(ours.dtype) and is_floating(theirs.dtype):
            return True
        different = int(np.count_nonzero(ours != theirs))
        if different:
            self.found("integer", f"{different} of {ours.size} elements differ", name, probe)
        return False

    def found(
        self,
        kind: str,
        message: str,
        output: str | None = None,
        probe: str | None = None,
        fatal: bool = True,
    ) -> None:
        """Adds a finding, the first of its kind for one output and probe, or of its message."""
        known = {(f.kind, f.output, f.probe) for f in self.findings}
        known |= {(f.kind, f.output, f.message) for f in self.findings}
        if not known & {(kind, output, probe), (kind, output, message)}:
            self.findings.append(Finding(kind, message, output, probe, fatal))

    def report(
        self, contract: str, outputs: list[ExactOutput] | list[ApproximateOutput]
    ) -> ValidationReport:
        self._look_for_constants()
        if not self.ran:
            self.found("failed", "nothing was compared")
        passed = not any(finding.fatal for finding in self.findings)
        reference, candidate = ModelSummary.of(self.reference), ModelSummary.of(self.candidate)
        return ValidationReport(contract, passed, reference, candidate, outputs, self.findings)

    def _look_for_constants(self) -> None:
        outputs = zip(self.outputs, self.reference.graph.outputs, self._variations, strict=True)
        for (name, _), value, (ours, theirs) in outputs:
            if not theirs.constant:
                continue
            if not self.depends_on(value):
                message = "it depends on no input of the reference"
                self.found("constant", message, name, fatal=False)
            elif ours.constant:
                where = "in both models for all inputs: its agreement says nothing"
                self.found("constant", f"{theirs} {where}", name)
            else:
                self.found("constant", f"{theirs} in the candidate for all inputs", name)

    def depends_on(self, output: Any) -> set[str]:
        """The names of the reference's inputs that one of its output values depends on."""
        graph = self.reference.graph
        reads = {v for node in graph.ancestors([output]) for v in node.inputs} | {output}
        return {value.name for value in graph.inputs if value in reads}


@dataclass
class _Errors:
    """One output over the probes of one kind."""

    kind: str
    dtype: np.dtype[Any]
    scale: float = 0.0
    original: ErrorTally = field(default_factory=ErrorTally)
    candidate: ErrorTally = field(default_factory=ErrorTally)
    neighbours: dict[int, ErrorTally] = field(default_factory=dict)  # by draw

    def result(self) -> ProbeErrors:
        ulps = _DOUBLE_ULPS if self.dtype == np.float64 else _ULPS
        slack = ulps * float(ml_dtypes.finfo(self.dtype).eps) * self.scale
        draws = [self.original, *self.neighbours.values()]
        largest, rms = max(d.maximum for d in draws), max(d.rms for d in draws)
        return ProbeErrors(
            self.kind, self.candidate.count, self.scale, largest, self.candidate.maximum,
            _FACTOR * largest + slack, rms, self.candidate.rms, _FACTOR * rms + slack,
        )  # fmt: skip

    @property
    def excess(self) -> float:
        """The error as a multiple of its bound."""
        result = self.result()
        pairs = [(result.max_candidate, result.max_bound), (result.rms_candidate, result.rms_bound)]
        return max(0.0 if not e else e / bound if bound else np.inf for e, bound in pairs)


class _Exact:
    """The exact contract, one kind of probe after the other."""

    def __init__(self, reference: Model, candidate: Model) -> None:
        self._pair = _Pair(reference, candidate)
        self._truth = _runner(reference, np.float64)
        self._neighbours: Neighbours | None = None
        self._dtypes: dict[int, np.dtype[Any]] = {}
        self._results: list[list[ProbeErrors]] = [[] for _ in self._pair.outputs]

    def examine(self, kind: str, probes: Sequence[Probe]) -> None:
        errors: dict[int, _Errors] = {}
        for probe in probes:
            self._compare(probe, errors)
        if _excess(errors) > 1:
            self._try_neighbours(probes, errors, range(_SOME))
        if 1 < _excess(errors) < _HOPELESS:
            self._try_neighbours(probes, errors, range(_SOME, _ALL))
        for output, tally in errors.items():
            result = tally.result()
            self._results[output].append(result)
            if not result.passed:
                message = (
                    f"error {result.max_candidate:.3g} (rms {result.rms_candidate:.3g}), allowed "
                    f"{result.max_bound:.3g} ({result.rms_bound:.3g}); the original's is "
                    f"{result.max_original:.3g} ({result.rms_original:.3g})"
                )
                self._pair.found("error_bound", message, self._pair.outputs[output][0], kind)

    def _compare(self, probe: Probe, errors: dict[int, _Errors]) -> None:
        results = self._pair.run(probe.feeds, probe.name)
        if results is None:
            return
        truths = self._in_double(probe.feeds)
        for output, (ours, theirs, truth) in enumerate(zip(*results, truths, strict=True)):
            self._dtypes[output] = ours.dtype
            if not self._pair.comparable(output, ours, theirs, probe.name):
                continue
            arrays = [np.asarray(a, np.float64) for a in (truth, ours, theirs)]
            finite = _finite(arrays)
            if finite is None:
                counts = [int((~np.isfinite(a)).sum()) for a in arrays]
                message = (
                    f"NaN or infinite: {counts[2]} elements of the candidate's, {counts[1]} of the "
                    f"reference's, {counts[0]} in float64, of {ours.size}"
                )
                self._pair.found("non_finite", message, self._pair.outputs[output][0], probe.name)
                continue
            exact, original, rewritten = (a[finite] for a in arrays)
            tally = errors.setdefault(output, _Errors(probe.name, ours.dtype))
            tally.scale = max(tally.scale, float(np.abs(exact).max(initial=0)))
            tally.original.add(original - exact)
            tally.candidate.add(rewritten - exact)

    def _try_neighbours(
        self, probes: Sequence[Probe], errors: dict[int, _Errors], draws: Iterable[int]
    ) -> None:
        """Adds how far the original's neighbours are from the truth."""
        try:
            self._neighbours = self._neighbours or Neighbours(self._pair.reference)
        except NormswapError:  # then the original's own error is all there is
            return
        for probe in probes:
            truths = self._in_double(probe.feeds)
            for draw in draws:
                nearby = self._neighbours.run(probe.feeds, draw)
                for output, tally in errors.items():
                    with np.errstate(invalid="ignore"):
                        error = np.asarray(nearby[output], np.float64) - truths[output]
                    total = tally.neighbours.setdefault(draw, ErrorTally())
                    total.add(error[np.isfinite(error)])

    def _in_double(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return self._truth(feeds)
        except _Failed as failure:
            name = self._pair.reference.name
            raise NormswapError(f"{name}: cannot be evaluated in float64: {failure}") from failure

    def report(self) -> ValidationReport:
        outputs = [
            ExactOutput(*names, self._dtypes[i].name if i in self._dtypes else "", self._results[i])
            for i, names in enumerate(self._pair.outputs)
        ]
        return self._pair.report("exact", outputs)


class _Approximate:
    """The approximate contract, one batch after the other."""

    def __init__(
        self,
        reference: Model,
        candidate: Model,
        labels: Array | None,
        given: Collection[str] | None,
    ) -> None:
        self._pair = _Pair(reference, candidate)
        self._labels = labels
        self._rows = 0
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._dtypes: dict[int, np.dtype[Any]] = {}
        self._similarities = [Similarity() for _ in self._pair.outputs]
        self._correct: dict[int, list[tuple[float, float, int]]] = {}
        foreign = set() if given is None else {s.name for s in reference.inputs} - set(given)
        self._labelled = [
            not self._pair.depends_on(value) & foreign for value in reference.graph.outputs
        ]

    def add(self, feeds: Mapping[str, Array]) -> None:
        rows = max(len(array) for array in feeds.values() if array.ndim)
        labels = None if self._labels is None else self._labels[self._rows : self._rows + rows]
        self._rows += rows
        results = self._pair.run(feeds, f"rows up to {self._rows}")
        if results is None:
            return
        for output, (ours, theirs) in enumerate(zip(*results, strict=True)):
            self._shapes[output], self._dtypes[output] = ours.shape, ours.dtype
            if not self._pair.comparable(output, ours, theirs, None):
                continue
            arrays = [np.asarray(a, np.float64) for a in (ours, theirs)]
            if _finite(arrays) is None:
                counts = [int((~np.isfinite(a)).sum()) for a in arrays]
                message = f"NaN or infinite: {counts[1]} elements, {counts[0]} of the reference's"
                self._pair.found("non_finite", message, self._pair.outputs[output][0])
            self._similarities[output].add(*arrays)
            if labels is not None and self._fits(output, ours, labels):
                shares = [accuracy(a, labels) for a in arrays]
                self._correct.setdefault(output, []).append((shares[0], shares[1], rows))

    def _fits(self, output: int, array: Array, labels: Array) -> bool:
        classes = int(np.max(self._labels)) + 1 if self._labels is not None else 0
        rank_2 = array.ndim == 2 and len(array) == len(labels) and array.shape[1] >= classes
        return rank_2 and self._labelled[output]

    def report(self) -> ValidationReport:
        if self._labels is not None and len(self._labels) != self._rows:
            raise NormswapError(f"there are {len(self._labels)} labels for {self._rows} samples")
        scored = self._scored()
        outputs = []
        for index, (names, similarity) in enumerate(
            zip(self._pair.outputs, self._similarities, strict=True)
        ):
            shape = self._shapes.get(index, ())
            ranked = len(shape) == 2 and shape[1] >= 2
            scores = self._accuracies(index) if index == scored else (None, None)
            outputs.append(
                ApproximateOutput(
                    *names,
                    self._dtypes[index].name if index in self._dtypes else "",
                    self._rows,
                    _number(similarity.sqnr_db),
                    _number(similarity.cosine_mean),
                    _number(similarity.cosine_worst),
                    _number(similarity.max_abs_error),
                    _number(similarity.top1_agreement) if ranked else None,
                    *scores,
                )
            )
            if similarity.max_abs_error == 0:
                self._pair.found("identical", "bit-equal in both models", names[0], fatal=False)
        return self._pair.report("approximate", outputs)

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


def _runner(model: Model, dtype: Any = None) -> Run:
    """All outputs in order, from feeds by name; whatever goes wrong in a run is _Failed."""
    graph = model.graph
    try:
        run = graph.slice([graph.value(s.name) for s in model.inputs], graph.outputs, dtype)
    except NormswapError as error:
        raise NormswapError(f"{model.name}: {error}") from error

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            model.check_feeds(feeds)
            return [np.asarray(a) for a in run([feeds[spec.name] for spec in model.inputs])]
        except MemoryError:
            raise
        except Exception as error:  # the runtimes' exceptions share no base class
            raise _Failed(first_line(error)) from error

    return call


def _finite(arrays: Sequence[Array]) -> Array | None:
    """Where all are finite; None unless they are elsewhere the same infinities."""
    finite = np.logical_and.reduce([np.isfinite(a) for a in arrays])
    agree = all(np.array_equal(a[~finite], arrays[0][~finite]) for a in arrays)
    return np.asarray(finite) if agree and not np.isnan(arrays[0]).any() else None


def _excess(errors: Mapping[int, _Errors]) -> float:
    return max((tally.excess for tally in errors.values()), default=0.0)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _sizes(array: Array) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"
