"""The exact contract: the same function up to rounding, judged in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.progress import Progress
from normswap.validate.metrics import ErrorTally
from normswap.validate.pairing import Pair, RunFailed, agreeing_finite, runner
from normswap.validate.probes import Neighbours, Probe
from normswap.validate.report import (
    ExactOutput,
    ProbeErrors,
    ValidationReport,
)

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
        self._pair = Pair(reference, candidate)
        self._truth = runner(reference, np.float64)
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
            finite = agreeing_finite(arrays)
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
        except RunFailed as failure:
            name = self._pair.reference.name
            raise NormswapError(f"{name}: cannot be evaluated in float64: {failure}") from failure

    def report(self) -> ValidationReport:
        outputs = [
            ExactOutput(*names, self._dtypes[i].name if i in self._dtypes else "", self._results[i])
            for i, names in enumerate(self._pair.outputs)
        ]
        return self._pair.report("exact", outputs)


def _excess(errors: Mapping[int, _Errors]) -> float:
    return max((tally.excess for tally in errors.values()), default=0.0)
