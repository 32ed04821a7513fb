"""The exact contract: the same function up to rounding, judged in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model, Progress
from normswap.parity.bounds import SOME, BoundedErrors, draws_in_doubt, largest_excess, ulp
from normswap.parity.evaluations import Evaluation, Feeds, few_rows
from normswap.parity.metrics import ErrorHistogram
from normswap.parity.neighbours import Neighbours
from normswap.parity.pairing import (
    Pair,
    RunFailed,
    Runs,
    agreeing_finite,
    matched_inputs,
    shared_inputs,
)
from normswap.parity.probes import EXTREMES, LENGTHS, Probe
from normswap.parity.report import ExactOutput, OutputErrors, ProbeErrors, ValidationReport
from normswap.parity.site_errors import SiteErrors


def exact_contract(
    reference: Model,
    candidate: Model,
    probes: Sequence[Probe],
    progress: Progress | None = None,
    runs: Runs = (None, None),
    sites: SiteErrors | None = None,
) -> ValidationReport:
    """Whether ``candidate`` computes the function of ``reference``, up to rounding.

    Truth is ``reference`` evaluated in float64. For every output and kind of probe
    e(candidate) <= 2 e(original) + one ulp, for e the largest error and for e the root mean square,
    over all probes of the kind; ulp = eps(output dtype) * max |truth| (64 of them for float64), or
    the spacing of subnormal numbers where that is larger (``ulp``).

    Why so: the rms sees small dense faults, the largest error sparse ones, but one draw of it is
    noisy (one sensitive row can decide), so in doubt e(original) is its largest value over up to
    16 more runs of the original with inputs and biases off by an ulp, and up to 64 where the
    candidate is less than a quarter above what is allowed: its error, not its luck.

    Where numbers are subnormal, an ulp is the same for all of them, and a norm magnifies it: of a
    row of x below the smallest normal number, var(x) is zero in the dtype, and y = gamma d /
    sqrt(epsilon) for d = x - mean(x). The mean is rounded to a multiple of the spacing s and lies
    between two of them by luck, so right spellings are off by up to s gamma / sqrt(epsilon) from
    each other, whatever the size of y. e(original) has that error too, but for its luck: moved by
    eps |x| < s / 2 its inputs would round back to themselves, moved by s they show it.

    Hardware that flushes subnormal numbers to zero makes an error of up to the smallest normal
    number in place of s / 2, which is all of such an input. Nothing is added for that: both models
    run in one runtime, so the original shows it, and a candidate that alone flushes is at fault.

    An original that is far from its own float64 evaluation proves nothing, however it came about
    (an operator that one of the two computes wrongly): a bound of twice its error would let any
    fault pass. So e(original) may itself be at most the larger of

    * sqrt(eps) * max |truth|: half of the digits of the dtype are right, and
    * 100 times the most that an ulp in the inputs and biases moves the original. Rounding a sum of
      n terms is a change of its terms by up to n ulps, and by sqrt(n) in all but rare cases (Higham
      and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019): 100 for the 10,000
      terms of the largest products.

    More than that is a fatal finding of its own, ``reference``. Large and subnormal values are not
    judged so: there the original may overflow or flush to zero.

    ``probes``: feeds by the reference's input names. Inputs and outputs of the two models are
    matched by name where the names agree and by position otherwise. Integer outputs must be equal.
    ``runs``: how both are run, by default as their own graphs do. ``sites``: takes the errors at
    norms, on one probe of each kind, from the same runs.
    Raises NormswapError for models whose inputs or outputs cannot be matched, or whose reference
    cannot be evaluated in float64.
    """
    exact = _Exact(reference, candidate, runs, sites)
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

    def __init__(
        self, reference: Model, candidate: Model, runs: Runs, sites: SiteErrors | None
    ) -> None:
        shared_inputs(reference, candidate)  # of one dtype too
        ours, theirs = (sites.ours, sites.theirs) if sites else ([], [])
        self._sites, self._inside = sites, ours
        self._truth = Evaluation(reference, ours, np.float64)
        self._ours = Evaluation(reference, ours, run=runs[0])
        self._theirs = Evaluation(candidate, theirs, run=runs[1])
        self._pair = Pair(reference, candidate, (self._ours.outputs, self._theirs.outputs))
        self._inputs = matched_inputs(reference, candidate)
        self._neighbours: dict[tuple[bool, bool], Neighbours | None] = {}
        self._dtypes: dict[int, np.dtype[Any]] = {}
        self._histograms: dict[int, tuple[ErrorHistogram, ErrorHistogram]] = {}
        self._results: list[list[ProbeErrors]] = [[] for _ in self._pair.outputs]

    def examine(self, kind: str, probes: Sequence[Probe]) -> None:
        errors: dict[int, BoundedErrors] = {}
        compared = []
        looked_at: Feeds | None = None  # on these the norms were
        for number, probe in enumerate(probes):
            if found := self._compare(probe, errors):
                compared.append((probe, *found))
            if not number and self._sites is not None:
                looked_at = self._look_inside(self._sites, probe)
        self._look_for_luck(compared, errors, looked_at)
        if self._sites is not None:
            self._sites.end()
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
        if kind not in EXTREMES:
            self._judge_reference(kind, compared, errors)

    def _look_inside(self, sites: SiteErrors, probe: Probe) -> Feeds | None:
        """Counts the errors at norms: on the probe, or on a few rows of it where its values there
        are not at hand. The feeds; None where the models do not run so far."""
        evaluations = self._truth, self._ours, self._theirs
        if all(evaluation.held is not None for evaluation in evaluations):
            feeds: Feeds = probe.feeds
            arrays = [evaluation.held or [] for evaluation in evaluations]
        else:
            feeds = few_rows(self._pair.reference, probe.feeds)
            renamed = {self._inputs[name]: array for name, array in feeds.items()}
            try:
                arrays = [self._truth.inside(feeds), self._ours.inside(feeds)]
                arrays.append(self._theirs.inside(renamed))
            except RunFailed:
                return None
        sites.begin(probe.name, *arrays)
        return feeds

    def _look_for_luck(
        self,
        compared: Sequence[tuple[Probe, list[Array], list[Array]]],
        errors: dict[int, BoundedErrors],
        looked_at: Feeds | None,
    ) -> None:
        """In doubt, adds how far the original's neighbours are from the truth, at outputs and at
        norms; where none can be run, the original's own error is all there is."""
        sites, drawn = self._sites, 0
        while True:
            outside = draws_in_doubt(largest_excess(errors.values()), drawn)
            within = draws_in_doubt(sites.excess if sites else 0.0, drawn)
            for draw in outside or within:
                pending = looked_at if within else None
                for probe, _, truths in compared if outside else ():
                    both = probe.feeds is looked_at
                    nearby = self._nearby(probe.feeds, draw, inside=both)
                    for output, tally in errors.items() if nearby else ():
                        tally.add_neighbour(draw, truths[output], nearby[output])
                    if both and nearby and pending is not None and sites:
                        sites.add_neighbour(draw, nearby[len(truths) :])
                        pending = None
                if pending is not None and sites:
                    nearby = self._nearby(pending, draw, outputs=False, inside=True)
                    sites.add_neighbour(draw, nearby)
            if not outside and not within:
                return
            drawn = (outside or within).stop

    def _judge_reference(
        self,
        kind: str,
        compared: Sequence[tuple[Probe, list[Array], list[Array]]],
        errors: Mapping[int, BoundedErrors],
    ) -> None:
        """Looks for outputs of the reference that are far from their own float64 evaluation."""
        limits = {o: math.sqrt(float(ulp(t.dtype, 1.0))) * t.scale for o, t in errors.items()}
        far = [o for o, tally in errors.items() if tally.original.maximum > limits[o]]
        if not far:
            return
        moved: dict[int, float] = {}
        for probe, ours, _ in compared:
            for draw in range(SOME):
                nearby = self._nearby(probe.feeds, draw)
                for output in far if nearby else ():
                    if nearby[output].shape == ours[output].shape:
                        most = _largest_difference(nearby[output], ours[output])
                        moved[output] = max(moved.get(output, 0.0), most)
        far = [output for output in far if output in moved]  # else nothing tells it from rounding
        for output in far:
            limits[output] = max(limits[output], _ROUNDINGS * moved[output])
        for output in far:
            error = errors[output].original.maximum
            if error > limits[output]:
                message = (
                    f"the reference is {error:.3g} from its own evaluation in float64, where "
                    f"rounding explains {limits[output]:.3g}: an operator in it is computed in "
                    "another meaning by one of the two, and nothing can be proven against it"
                )
                self._pair.found("reference", message, self._pair.outputs[output][0], kind)

    def _compare(
        self, probe: Probe, errors: dict[int, BoundedErrors]
    ) -> tuple[list[Array], list[Array]] | None:
        """Counts the errors on one probe; the reference's outputs in its own dtypes and in float64,
        if both models ran."""
        self._truth.held = self._ours.held = self._theirs.held = None
        results = self._pair.run(probe.feeds, probe.name)
        if results is None:
            return None
        try:
            truths = self._in_double(probe.feeds)
        except NormswapError as error:
            if probe.name not in LENGTHS:
                raise
            self._pair.found("failed", str(error), probe=probe.name, fatal=False)
            return None
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
        return results[0], truths

    def _nearby(
        self, feeds: Feeds, draw: int, outputs: bool = True, inside: bool = False
    ) -> list[Array]:
        """What a neighbour of the original yields at its outputs and at its norms; nothing where
        none can be run."""
        model, asked = self._pair.reference, (outputs, inside)
        values = [*(model.graph.outputs if outputs else ()), *(self._inside if inside else ())]
        try:
            if asked not in self._neighbours:
                self._neighbours[asked] = None
                self._neighbours[asked] = Neighbours(model, values)
            neighbours = self._neighbours[asked]
            return neighbours.run(feeds, draw) if neighbours else []
        except NormswapError:
            return []

    def _in_double(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return self._truth.outputs(feeds)
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
        left = sorted(self._pair.reference.graph.not_in_double)
        if left:
            message = (
                f"{', '.join(left)}: computed in its own dtype in the float64 evaluation too, "
                "which knows no other; the errors of the reference lack its part"
            )
            self._pair.found("float64", message, fatal=False)
        return replace(self._pair.report("exact", outputs), errors=errors)


_ROUNDINGS = 100.0  # by how many times what an ulp moves rounding may move an original


def _largest_difference(a: Array, b: Array) -> float:
    """Between two arrays of one shape, where both are finite."""
    apart = np.abs(np.subtract(a, b, dtype=np.float64))
    return float(np.max(apart, where=np.isfinite(apart), initial=0))
