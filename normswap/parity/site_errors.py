"""How close two models are at each of their matched norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph
from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.parity.bounds import BoundedErrors, draws_in_doubt, largest_excess
from normswap.parity.evaluations import Slicing, value_runner
from normswap.parity.metrics import Similarity, finite_or_none
from normswap.parity.neighbours import one_ulp_off
from normswap.parity.pairing import RunFailed, Runs, feeds_for, reported_failures
from normswap.parity.probes import Probe
from normswap.parity.report import Finding, ProbeErrors, SiteComparison
from normswap.parity.site_pairs import SitePair


@dataclass
class _Tally:
    similarity: Similarity = field(default_factory=Similarity)
    worst: ProbeErrors | None = None
    excess: float = 0.0

    def add(self, errors: BoundedErrors) -> None:
        if self.worst is None or errors.excess > self.excess:
            self.worst, self.excess = errors.result(), errors.excess


class SiteErrors:
    """The values of two models at matched norms, on one set of inputs after the other.

    ``slicing``: how the candidate is evaluated by ``add``; None is as it runs. Models that
    cannot be run up to their norms have no figures there: that is told where outputs are compared.
    """

    def __init__(
        self,
        reference: Model,
        candidate: Model,
        pairs: Sequence[SitePair],
        slicing: Slicing | None = None,
    ) -> None:
        self._slicing = slicing
        self._reference, self._candidate = reference, candidate
        self._feeds, self._pairs = feeds_for(reference, candidate), pairs
        self.ours = [pair.ours for pair in pairs]
        self.theirs = [pair.theirs for pair in pairs]
        self._tallies = [_Tally() for _ in pairs]
        self._truths: Sequence[Array] = ()
        self._errors: dict[int, BoundedErrors] = {}
        self._runs: Runs = (None, None)

    def begin(
        self, kind: str, truths: Sequence[Array], ours: Sequence[Array], theirs: Sequence[Array]
    ) -> None:
        """Counts errors against the reference in float64 on the probe of a kind: the values at
        ``self.ours`` (in float64 and as it runs) and at ``self.theirs``."""
        self._truths, self._errors = truths, {}
        for index, (truth, own, other) in enumerate(zip(truths, ours, theirs, strict=True)):
            if truth.shape != other.shape or own.shape != truth.shape:
                continue
            exact, original, rewritten = (np.asarray(a, np.float64) for a in (truth, own, other))
            if not np.isfinite(exact).all() or not np.isfinite(original).all():
                continue
            self._errors[index] = BoundedErrors(kind, own.dtype)
            self._errors[index].add(exact, original, rewritten)
            self._tallies[index].similarity.add(exact, rewritten)

    @property
    def excess(self) -> float:
        """The largest error since ``begin``, as a multiple of its bound."""
        return largest_excess(self._errors.values())

    def add_neighbour(self, draw: int, nearby: Sequence[Array]) -> None:
        """Counts what a neighbour of the reference yields at ``self.ours``, if anything."""
        for index, tally in self._errors.items() if nearby else ():
            tally.add_neighbour(draw, self._truths[index], nearby[index])

    def end(self) -> None:
        """Keeps what ``begin`` and the neighbours since have shown."""
        for index, errors in self._errors.items():
            self._tallies[index].add(errors)
        self._truths, self._errors = (), {}

    def add(self, probe: Probe) -> None:
        """Counts how alike the values are on a batch."""
        run_ours = self._runs[0] or value_runner(self._reference, self.ours)
        run_theirs = self._runs[1] or value_runner(
            self._candidate, self.theirs, slicing=self._slicing
        )
        self._runs = run_ours, run_theirs
        try:
            ours = run_ours(probe.feeds)
            theirs = run_theirs(self._feeds(probe.feeds))
        except RunFailed:
            return
        for tally, own, other in zip(self._tallies, ours, theirs, strict=True):
            if own.shape == other.shape:
                tally.similarity.add(own, other)

    def add_norms_alone(self, progress: Progress | None = None) -> None:
        """Counts the errors of norms that should be the same on inputs of their own."""
        graphs = self._reference.graph, self._candidate.graph
        scales = self._scales_of_inputs()
        for done, (pair, tally) in enumerate(zip(self._pairs, self._tallies, strict=True)):
            if progress:
                progress(done, len(self._pairs), "each norm alone")
            same = pair.twin is not None and pair.twin.kind == pair.site.kind
            if pair.at == "output" and pair.twin is not None and same:
                for errors in errors_alone(*graphs, pair.site, pair.twin, scales.get(pair, 1.0)):
                    tally.add(errors)
        if progress:
            progress(len(self._pairs), len(self._pairs), "done")

    def _scales_of_inputs(self) -> dict[SitePair, float]:
        """By how much the candidate's norms read more than the reference's: powers of two that
        their epsilons tell of, and that hold on the example inputs, as where a stream is rescaled.
        """
        told = {
            p: s for p in self._pairs if p.twin and (s := _told_by_epsilon(p.site, p.twin)) != 1
        }
        if not told:
            return {}
        graphs = self._reference.graph, self._candidate.graph
        ours = [graphs[0].value(pair.site.input) for pair in told]
        theirs = [graphs[1].value(pair.twin.input) for pair in told if pair.twin]
        feeds = self._reference.examples
        try:
            own = value_runner(self._reference, ours)(feeds)
            other = value_runner(self._candidate, theirs)(self._feeds(feeds))
        except RunFailed:
            return {}
        sizes = ([float(np.linalg.norm(a.astype(np.float64))) for a in run] for run in (own, other))
        found = zip(told.items(), *sizes, strict=True)
        return {pair: by for (pair, by), a, b in found if abs(b - by * a) <= _SAME_SCALE * by * a}

    def results(self) -> list[SiteComparison]:
        return [_comparison(p, t) for p, t in zip(self._pairs, self._tallies, strict=True)]


def comparable(
    sites: Sequence[SiteComparison], outputs_hold: bool
) -> tuple[list[SiteComparison], list[tuple[str, str]]]:
    """The sites that were compared, and those that could not be, with the reason.

    What a linear layer behind a norm gives may differ in a model that is the same: keys may be
    shifted, queries and keys centred. Where the outputs hold, such a layer compares nothing.
    """
    rewritten = [s for s in sites if s.passed is False and s.at != "output" and outputs_hold]
    reason = "what reads it, {}, was rewritten too; the outputs hold"
    others = [site for site in sites if site not in rewritten]
    return others, [(site.name, reason.format(site.at)) for site in rewritten]


def judged(sites: Sequence[SiteComparison]) -> list[Finding]:
    """A fatal finding for every norm at which the exact contract is broken."""
    findings = []
    for site in sites:
        if site.passed is not False:
            continue
        at = "" if site.at == "output" else f" behind it, at {site.at}"
        message = f"the error{at} is {site.excess:.3g} times what is allowed"
        findings.append(Finding("site", message, site.name, site.probe))
    return findings


def _comparison(pair: SitePair, tally: _Tally) -> SiteComparison:
    site, similarity = pair.site, tally.similarity
    made = SiteComparison(
        site.name,
        site.role,
        site.tower,
        site.kind,
        None if pair.twin is None else pair.twin.kind,
        pair.at,
        finite_or_none(similarity.sqnr_db),
        finite_or_none(similarity.cosine_mean),
        finite_or_none(similarity.cosine_worst),
        finite_or_none(similarity.max_abs_error),
    )
    if tally.worst is None:
        return made
    excess, probe = tally.excess, tally.worst.probe
    return replace(made, excess=excess, probe=probe, passed=excess <= 1)


_LARGE_MEAN = 1e4
_ULPS_OF_DEVIATION = 64.0  # a mean that large leaves a deviation of one this many units
_OUTLIER = 100.0
_EPSILON_ROUNDING = 1e-6  # what a file, or a proof, makes of it
_SAME_SCALE = 1e-2


def errors_alone(
    reference: Graph, candidate: Graph, site: Site, twin: Site, by: float
) -> Iterator[BoundedErrors]:
    """The errors of ``twin``, which reads ``by`` times as much, against ``site`` in float64, for
    every kind of rows; none where the norms' own inputs cannot be fed. For two norms of one kind
    that normalise the same axes."""
    value, other = reference.value(site.input), candidate.value(twin.input)
    if value.shape is None or value.dtype is None or other.shape != value.shape:
        return
    ends = [reference.value(site.output)], [candidate.value(twin.output)]
    try:
        truth = reference.slice([value], ends[0], np.float64)
        ours, theirs = reference.slice([value], ends[0]), candidate.slice([other], ends[1])
    except (NormswapError, ValueError):
        return
    for seed, (name, draw) in enumerate(_HOSTILE_ROWS.items()):
        rng = np.random.default_rng(seed)
        rows = draw(rng, value.shape, site, value.dtype).astype(value.dtype)
        try:
            with reported_failures():
                [exact], [own] = truth([rows]), ours([rows])
                [rewritten] = theirs([(by * rows).astype(rows.dtype)])
        except RunFailed:
            return
        exact, own = np.asarray(exact, np.float64), np.asarray(own)
        finite = np.isfinite(exact).all() and np.isfinite(own).all()
        if rewritten.shape != exact.shape or not finite:
            continue
        errors = BoundedErrors(f"the norm alone, {name}", own.dtype)
        errors.add(exact, np.asarray(own, np.float64), np.asarray(rewritten, np.float64))
        drawn = 0
        while draws := draws_in_doubt(errors.excess, drawn):
            for number in draws:
                [near] = ours([one_ulp_off(np.random.default_rng(number), rows)])
                errors.add_neighbour(number, exact, near)
            drawn = draws.stop
        yield errors


def _told_by_epsilon(site: Site, twin: Site) -> float:
    """The power of two s with which the epsilon of ``twin`` is s^2 times that of ``site``, or 1."""
    if not site.epsilon or not twin.epsilon or twin.epsilon < 0 or site.epsilon < 0:
        return 1.0
    ratio = math.sqrt(twin.epsilon / site.epsilon)
    nearest = 2.0 ** round(math.log2(ratio))
    return nearest if abs(ratio / nearest - 1) < _EPSILON_ROUNDING else 1.0


def _per_row(shape: tuple[int, ...], site: Site) -> tuple[int, ...]:
    return tuple(1 if axis in site.axes else size for axis, size in enumerate(shape))


def _large_mean(
    rng: np.random.Generator, shape: tuple[int, ...], site: Site, dtype: np.dtype
) -> Array:
    mean = min(_LARGE_MEAN, 1 / (_ULPS_OF_DEVIATION * float(ml_dtypes.finfo(dtype).eps)))
    signs = rng.choice([-1.0, 1.0], _per_row(shape, site))
    return np.asarray(rng.standard_normal(shape) + mean * signs)


def _variance_of_epsilon(
    rng: np.random.Generator, shape: tuple[int, ...], site: Site, _dtype: np.dtype
) -> Array:
    return np.asarray(np.sqrt(max(site.epsilon, 1e-12)) * rng.standard_normal(shape))


def _outlier(
    rng: np.random.Generator, shape: tuple[int, ...], site: Site, _dtype: np.dtype
) -> Array:
    rows = rng.standard_normal(shape)
    axis = site.axes[-1]
    channel = rng.integers(shape[axis])
    place = np.arange(shape[axis]) == channel
    wide = place.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.where(wide, _OUTLIER * rows, rows)


_HOSTILE_ROWS: dict[
    str, Callable[[np.random.Generator, tuple[int, ...], Site, np.dtype], Array]
] = {
    "large mean": _large_mean,
    "variance of the size of epsilon": _variance_of_epsilon,
    "outlier channel": _outlier,
}
