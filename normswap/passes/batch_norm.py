"""LayerNorms become BatchNorms, their constants fitted to calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.fit.batch_norm import copied, matched_moments
from normswap.fit.batches import calibration_batches
from normswap.fit.moments import ChannelMoments
from normswap.fit.sweep import Stop, measure, sweep
from normswap.graph.graph import Array, Graph, Value
from normswap.io.data import Data
from normswap.locate import locate
from normswap.locate.site import Site
from normswap.model import Model
from normswap.passes.base import Pass, PassResult
from normswap.passes.ffn_batch_norm import ffn_stops
from normswap.passes.insert import insert_batch_norm
from normswap.passes.select import select_sites
from normswap.progress import Progress

FITS = ("copy", "moments")


@dataclass
class BatchNorm(Pass):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta with constants per channel.

    Approximate: a LayerNorm's statistics depend on the token, a BatchNorm's do not. Each site is
    fitted on the upstream that is already swapped. ``fit``: 'copy' keeps gamma and beta, 'moments'
    gives the output the per-channel mean and variance of the original LayerNorm's output.
    ``ffn_batchnorm`` also inserts one behind the first linear layer of each FFN, which changes
    nothing at evaluation. Without ``sites`` a model with an image tower has that tower swapped and
    the other left alone. Skips norms of other kinds and over several axes.
    """

    target: ClassVar[str] = "batchnorm"
    exact: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    data: Data
    sites: str | None = None
    fit: str = "moments"
    ffn_batchnorm: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise NormswapError(f"--fit: '{self.fit}' is none of {', '.join(FITS)}")

    def __call__(self, model: Model) -> PassResult:
        chosen, notes = _default_tower(locate(model.graph).sites, self.sites)
        todo = [s for s in chosen if s.kind == "layer_norm" and len(s.axes) == 1]
        skipped = [(s, _reason(s)) for s in chosen if s not in todo]
        if not todo:
            return PassResult(model, False, [], skipped, notes)
        result = model.copy()
        batches = calibration_batches(model, todo, self.data)
        stops = self._stops(model.graph, result.graph, todo, batches)
        if self.ffn_batchnorm:
            more, unfit = ffn_stops(result.graph, todo)
            stops, skipped = stops + more, skipped + unfit
        position = {node.output: i for i, node in enumerate(result.graph.nodes)}
        stops.sort(key=lambda s: position[s.value.producer.output] if s.value.producer else -1)
        for done, _ in enumerate(sweep(result.graph, batches, stops), 1):
            if self.progress:
                self.progress(done, len(stops), "fitting")
        result.graph.prune()
        return PassResult(result, True, todo, skipped, notes)

    def _stops(
        self, original: Graph, graph: Graph, sites: Sequence[Site], batches: list[dict[str, Array]]
    ) -> list[Stop]:
        targets: list[ChannelMoments | None] = [None] * len(sites)
        if self.fit == "moments":
            outputs = [(original.value(s.output), s.axes[0]) for s in sites]
            targets = list(measure(original, batches, outputs))
        return [_stop(graph, s, y) for s, y in zip(sites, targets, strict=True)]


def _stop(graph: Graph, site: Site, y: ChannelMoments | None) -> Stop:
    axis = site.axes[0]

    def edit(x: Value, moments: ChannelMoments) -> tuple[Value, Value]:
        constants = (
            copied(site.weight, site.bias, moments, site.epsilon)
            if y is None
            else matched_moments(site.weight, moments, y, site.epsilon)
        )
        old = graph.value(site.output)
        new, _ = insert_batch_norm(graph, x, axis, constants, site.name, old.producer)
        graph.replace_uses(old, new)
        return old, new

    return Stop(graph.value(site.input), axis, edit)


def _default_tower(sites: Sequence[Site], pattern: str | None) -> tuple[list[Site], list[str]]:
    chosen = select_sites(sites, pattern)
    towers = {site.tower for site in chosen}
    if pattern is not None or not {"image", "text"} <= towers:
        return chosen, []
    kept = [site for site in chosen if site.tower == "text"]
    note = (
        f"the image tower was swapped; {len(kept)} sites of the text tower were left as they are "
        f"(ask for them with --sites tower=text)"
    )
    return [site for site in chosen if site.tower != "text"], [note]


def _reason(site: Site) -> str:
    if site.kind != "layer_norm":
        return f"it is a {site.kind}"
    return f"it normalises over {len(site.axes)} axes, a BatchNorm has one"
