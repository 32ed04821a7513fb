"""Affine maps per channel disappear into the neighbouring weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.model import Model
from normswap.norms.operator_norms import PER_ELEMENT, TRAINING
from normswap.norms.site import Site, unique_names
from normswap.norms.structure import towers
from normswap.passes.algebra.affine_regions import (
    AffineRegion,
    affine_regions,
    ends_a_stream,
)
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.narrow import held_where_made, held_where_read, nothing_more
from normswap.passes.algebra.rounding import OutOfRange, rounded
from normswap.passes.algebra.spread import Spread, Start, norm_nodes, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.select import Selection, named_in, select_sites

_LARGE_MEAN = 25.0  # deviations; measured: at 10 the exact contract holds, at 30 it may fail


@dataclass(kw_only=True)
class Fold(Pass):
    """y = A x + t moves into the linear layers, convolutions and constants around it, and is gone.

    That is every BatchNorm in evaluation mode (A = diag(gamma / sqrt(var + eps)), t = beta - A
    mean), every chain of products and sums with constants per channel, and every square linear
    layer whose neighbours can take it (``algebra/affine_regions.py``). Exact: weights are computed
    in float64 and rounded once, however many maps they absorb. The rules are the table in
    ``algebra/rules.py``. A map behind a linear layer or a convolution goes up into it; any other
    goes down into its readers, or up; where neither is possible, the whole stream that it lies in
    changes its variables. In front of a convolution that pads with zeros a shift stays behind as
    one Add.
    Skips, with the reason, what is in training mode, what is an output of the model or feeds
    anything but linear maps on both sides, and what lies along another axis than the weights.
    Square linear layers that stay are only reported if ``sites`` names them, or if a swap has put
    them in place of a norm.

    Attributes:
        sites: which BatchNorms and maps; see ``select_sites``. All by default.

    Examples:
        >>> result = Fold()(swap(model, to="batchnorm", data="images").model)
        >>> result.skipped  # each with the reason
        []
    """

    exact: ClassVar[bool] = True

    def run(self, model: Model) -> PassResult:
        result = model.copy()
        located = model.location
        edits = WeightEdits(result.graph)
        regions, chosen = _regions(result.graph, edits, located.sites, self.sites)
        folding = _Folding(result.graph, edits, located.sites)
        folding.run(regions)
        if self.sites is None:
            folding.run_on_what_is_new()
        # A matrix that a swap has put in place of a norm was meant to go.
        named = named_in(self.sites) | {name for step in model.history for name in step.sites}
        done, skipped = folding.done(regions), folding.skipped(regions, named)
        if self.sites is not None:
            other = [s for s in chosen if s.kind not in ("batch_norm", "scale_shift", "affine")]
            skipped = [(s, f"it is a {s.kind}") for s in other] + skipped
        stay = [r for r in located.rejected if r.reason in (TRAINING, PER_ELEMENT)]
        notes = [f"'{r.where}' stays: {r.reason}" for r in stay]
        if not done:
            return PassResult(model, False, [], skipped, notes)
        notes = [*folding.notes(), *filter(None, map(_conditioning, done)), *notes]
        edits.write()
        result.graph.prune()
        return PassResult(result, True, done, skipped, notes)


def _regions(
    graph: Graph, edits: WeightEdits, located: Sequence[Site], wanted: Selection | None
) -> tuple[list[AffineRegion], list[Site]]:
    """What ``wanted`` asks for: the regions, and the sites."""
    norms = [s for s in located if s.kind == "batch_norm"]
    others = norm_nodes(graph, [s for s in located if s not in norms])
    regions = _named(graph, affine_regions(graph, edits, norms, others), located)
    sites = [*located, *(s for r in regions for s in r.sites if s.kind != "batch_norm")]
    chosen = select_sites(sites, wanted)
    if len(chosen) == len(sites):
        return regions, chosen
    names = {s.name for s in chosen}
    taken = [s for s in norms if s.name in names]
    others = norm_nodes(graph, [s for s in located if s not in taken])
    regions = _named(graph, affine_regions(graph, edits, taken, others), located)
    return [r for r in regions if any(s.name in names for s in r.sites)], chosen


def _named(
    graph: Graph, regions: Sequence[AffineRegion], located: Sequence[Site]
) -> list[AffineRegion]:
    """The regions' own sites with names of their own and with their tower."""
    belongs = towers(graph)
    own = [r.sites[0] for r in regions if r.sites[0].kind != "batch_norm"]
    names = unique_names([*located, *own])[len(located) :]
    sites = {
        site: replace(site, name=name, tower=belongs.get(graph.value(site.input), ""))
        for site, name in zip(own, names, strict=True)
    }
    return [replace(r, sites=tuple(sites.get(s, s) for s in r.sites)) for r in regions]


class _Folding:
    """Folds regions until no more goes: what needs no inverse first, then changes of variables,
    then what can leave its shift behind."""

    def __init__(self, graph: Graph, edits: WeightEdits, located: Sequence[Site]) -> None:
        self.graph, self.edits = graph, edits
        self.closed = norm_nodes(graph, located)
        self.pending: list[AffineRegion] = []
        self.reasons: dict[AffineRegion, str] = {}
        self.folded: set[AffineRegion] = set()
        self.moved: dict[Value, Value] = {}  # what took the place of a folded region's exit
        self.shifts: dict[str, Node | None] = {}  # by the name of the site that left it behind

    def run(self, regions: Sequence[AffineRegion]) -> None:
        self.pending = list(regions)
        for attempt in (self._absorb, self._change_variables, self._leave_the_shift):
            tried = 0
            while tried != len(self.pending):
                tried = len(self.pending)
                for region in list(self.pending):
                    self._try(attempt, region)

    def run_on_what_is_new(self) -> None:
        """A sum with a number may have become one with a number per channel, and a shift that was
        left behind may go where its scale did not."""
        done = -1
        while done != len(self.moved):
            done = len(self.moved)
            regions = affine_regions(self.graph, self.edits, [], self.closed)
            self.run([r for r in regions if not r.is_square])

    def done(self, regions: Sequence[AffineRegion]) -> list[Site]:
        return [site for r in regions if r in self.folded for site in r.sites]

    def skipped(self, regions: Sequence[AffineRegion], named: set[str]) -> list[tuple[Site, str]]:
        """What stays although it was asked for, with the reason."""
        return [
            (site, self.reasons[region])
            for region in regions
            for site in region.sites
            if region not in self.folded
            and (
                site.kind == "batch_norm"
                or (site.kind == "scale_shift" and site.weight is not None)
                or site.name in named
            )
        ]

    def notes(self) -> list[str]:
        return [
            f"'{name}': its scale is folded; its shift stays, as one Add"
            for name, node in self.shifts.items()
            if node in self.graph.nodes
        ]

    def _try(self, attempt: Callable[[AffineRegion], None], region: AffineRegion) -> None:
        try:
            if region.refusal:
                raise Refusal(region.refusal)
            attempt(region)
        except Refusal as refusal:
            self.reasons[region] = str(refusal)
        else:
            self.pending.remove(region)

    def _absorb(self, region: AffineRegion) -> None:
        if region.is_square:  # cheap to find out before the matrix is loaded
            self._plan(region, _probe(region))
        self._remove(region, self._plan(region, region.compute()))

    def _change_variables(self, region: AffineRegion) -> None:
        try:
            self._absorb(region)
        except OutOfRange:
            raise
        except Refusal:
            if region.is_square and not ends_a_stream(self._entry(region)):
                raise
            self._remove(region, self._plan(region, region.compute().invertible()))

    def _leave_the_shift(self, region: AffineRegion) -> None:
        """y = A (x + A^-1 t): the sum stays, A goes down."""
        change = region.compute()
        if change.axis is not None or change.without_shift().is_neutral() or not change.shifts:
            raise Refusal(self.reasons[region])
        try:
            ahead = -change.invertible().inverted().shift
            x, name = self._entry(region), region.sites[0].name
            shift = rounded(ahead, x.dtype or np.dtype(np.float32), f"'{name}.shift'")
            start = self._start(region, change.without_shift(), upward=False)
            start = replace(start, held=nothing_more)  # x + A^-1 t is new
            plan = spread(self.edits, start).checked()
        except Refusal:
            raise Refusal(self.reasons[region]) from None
        value = self.graph.add_constant(shift, f"{name}.shift")
        total = self.graph.insert("Add", [x, value], name=f"{name}.shifted", like=x.producer)
        plan.act()
        self._replace(region, total)
        self.shifts[name] = total.producer

    def _plan(self, region: AffineRegion, change: ChannelMap) -> Spread:
        """The change that lets the region go, upward or downward. Raises Refusal for neither."""
        producer = self._entry(region).producer
        behind_weight = producer is not None and self.edits.weight_of(producer) is not None
        reasons: list[tuple[str, Refusal]] = []
        for upward in (behind_weight, not behind_weight):
            try:
                start = self._start(region, change, upward)
                return spread(self.edits, start, or_part=True).checked()
            except Refusal as refusal:
                reasons.append(("upward" if upward else "downward", refusal))
        kind = next((OutOfRange for _, r in reasons if isinstance(r, OutOfRange)), Refusal)
        raise kind("; ".join(f"{way}: {reason}" for way, reason in reasons))

    def _start(self, region: AffineRegion, change: ChannelMap, upward: bool) -> Start:
        entry, nodes = self._entry(region), region.nodes
        outputs = self.graph.outputs
        if region.exit in outputs and (entry in outputs or entry.producer is None):
            raise Refusal(f"'{entry.name}' cannot be the output '{region.exit.name}' as well")
        if not upward:
            held = held_where_made(entry)
            return Start(region.exit, change, True, nodes, entry, self.closed, held=held)
        for value in (v for n in nodes for v in n.outputs if v is not region.exit):
            if value in outputs or not set(value.readers) <= nodes:
                raise Refusal(f"'{value.name}' in its spelling is read elsewhere too")
        held = held_where_read(region.exit, outputs)
        return Start(entry, change, False, nodes, region.exit, self.closed, held=held)

    def _entry(self, region: AffineRegion) -> Value:
        entry = region.entry
        while entry in self.moved:
            entry = self.moved[entry]
        return entry

    def _remove(self, region: AffineRegion, plan: Spread) -> None:
        plan.act()
        self._replace(region, self._entry(region))

    def _replace(self, region: AffineRegion, value: Value) -> None:
        self.moved[region.exit] = value
        self.folded.add(region)
        self.graph.replace_uses(region.exit, value)
        self.graph.prune()  # dead readers would stand in the way of the next region


def _probe(region: AffineRegion) -> ChannelMap:
    """A map that goes wherever a matrix on the same channels would."""
    site, rank = region.sites[0], region.exit.rank or 1
    size = site.normalized_shape[0]
    scales = np.linspace(1.25, 1.75, size)
    scales[::2] *= -1  # which a ReLU tells from a scale
    return ChannelMap.along(scales, np.zeros(size), site.axes[0], rank)


def _conditioning(site: Site) -> str:
    """A warning where the fold is exact on paper but cancels large numbers in the model's dtype."""
    if site.mean is None or site.variance is None:
        return ""
    ratio = float(np.max(np.abs(site.mean) / np.sqrt(site.variance + site.epsilon)))
    if ratio < _LARGE_MEAN:
        return ""
    return (
        f"'{site.name}': a channel's mean is {ratio:.0f} times its deviation, which the folded "
        f"weights cancel in the model's own precision; validate the result"
    )
