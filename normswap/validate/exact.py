"""The exact contract: the same function up to rounding, judged in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.progress import Progress
from normswap.validate.bounds import BoundedErrors, draws_in_doubt, largest_excess
from normswap.validate.metrics import ErrorHistogram
from normswap.validate.neighbours import Neighbours
from normswap.validate.pairing import Pair, RunFailed, Runs, agreeing_finite, runner
from normswap.validate.probes import EXTREMES, Probe
from normswap.validate.report import (
    ExactOutput,
    OutputErrors,
    ProbeErrors,
    ValidationReport,
)


def exact_contract(
    reference: Model,
    candidate: Model,
    probes: Sequence[Probe],
    progress: Progress | None = None,
    runs: Runs | None = None,
) -> ValidationReport:
    """Whether ``candidate`` computes the function of ``reference``, up to rounding.

    Truth is ``reference`` evaluated in float64. For every output and kind of probe
    e(candidate) <= 2 e(original) + one ulp, for e the largest error and for e the root mean square,
    over all probes of the kind; ulp = eps(output dtype) * max |truth| (64 of them for float64), or
    the spacing of subnormal numbers where that is larger (``bounds.ulp``).

    Why so: the rms sees small dense faults, the largest error sparse ones, but one draw of it is
    noisy (one sensitive row can decide), so in doubt e(original) is its largest value over up to
    16 more runs of the original with inputs and biases off by an ulp: its error, not its luck.

    Where numbers are subnormal, an ulp is the same for all of them, and a norm magnifies it: of a
    row of x below the smallest normal number, var(x) is zero in the dtype, and y = gamma d /
    sqrt(epsilon) for d = x - mean(x). The mean is rounded to a multiple of the spacing s and lies
    between two of them by luck, so right spellings are off by up to s gamma / sqrt(epsilon) from
    each other, whatever the size of y. e(original) has that error too, but for its luck: moved by
    eps |x| < s / 2 its inputs would round back to themselves, moved by s they show it.

    Hardware that flushes subnormal numbers to zero makes an error of up to the smallest normal
    number in place of s / 2, which is all of such an input. Nothing is added for that: both models
    run in one runtime, so the original shows it, and a candidate that alone flushes is at fault.

    ``probes``: feeds by the reference's input names. Inputs and outputs of the two models are
    matched by name where the names agree and by position otherwise. Integer outputs must be equal.
    ``runs``: how both are run, by default as their own graphs do.
    Raises NormswapError for models whose inputs or outputs cannot be matched, or whose reference
    cannot be evaluated in float64.
    """
    exact = _Exact(Pair(reference, candidate, runs))
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


class _Exact:
    """The exact contract, one kind of probe after the other."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._truth = runner(pair.reference, np.float64)
        self._neighbours: Neighbours | None = None
        self._dtypes: dict[int, np.dtype[Any]] = {}
        self._histograms: dict[int, tuple[ErrorHistogram, ErrorHistogram]] = {}
        self._results: list[list[ProbeErrors]] = [[] for _ in self._pair.outputs]

    def examine(self, kind: str, probes: Sequence[Probe]) -> None:
        errors: dict[int, BoundedErrors] = {}
        compared = [(probe, truths) for probe in probes if (truths := self._compare(probe, errors))]
        drawn = 0
        while draws := draws_in_doubt(largest_excess(errors.values()), drawn):
            self._try_neighbours(compared, errors, draws)
            drawn = draws.stop
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

    def _compare(self, probe: Probe, errors: dict[int, BoundedErrors]) -> list[Array] | None:
        """Counts the errors on one probe; the reference in float64, if both models ran."""
        results = self._pair.run(probe.feeds, probe.name)
        if results is None:
            return None
        truths = self._in_double(probe.feeds)
        for output, (ours, theirs, truth) in enumerate(zip(*results, truths, strict=True)):
            self._dtypes[output] = ours.dtype
            if not self._pair.comparable(output, ours, theirs, probe.name):
                continue
            arrays = [np.asarray(a, np.float64) for a in (truth, ours, theirs)]
            if probe.name in EXTREMES:  # where the original itself overflows, all may
                arrays = [a[np.isfinite(arrays[1])] for a in arrays]
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
            tally = errors.setdefault(output, BoundedErrors(probe.name, ours.dtype))
            tally.add(exact, original, rewritten)
            own, other = self._histograms.setdefault(output, (ErrorHistogram(), ErrorHistogram()))
            own.add(exact, original)
            other.add(exact, rewritten)
        return truths

    def _try_neighbours(
        self,
        compared: Sequence[tuple[Probe, list[Array]]],
        errors: dict[int, BoundedErrors],
        draws: Iterable[int],
    ) -> None:
        """Adds how far the original's neighbours are from the truth."""
        try:
            self._neighbours = self._neighbours or Neighbours(
                self._pair.reference, self._pair.reference.graph.outputs
            )
        except NormswapError:  # then the original's own error is all there is
            return
        for probe, truths in compared:
            for draw in draws:
                nearby = self._neighbours.run(probe.feeds, draw)
                for output, tally in errors.items():
                    tally.add_neighbour(draw, truths[output], nearby[output])

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
        errors = [
            OutputErrors(self._pair.outputs[i][0], own.result(), other.result())
            for i, (own, other) in sorted(self._histograms.items())
        ]
        return replace(self._pair.report("exact", outputs), errors=errors)
