"""Per-channel scales move from what a norm gives into the weights that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normswap.errors import NormswapError
from normswap.fit.calibration import calibration_batches
from normswap.graph.graph import Array, Graph, Node
from normswap.graph.operators import norm_operator
from normswap.io.data import Data
from normswap.model import Model
from normswap.norms.site import Site
from normswap.options import option
from normswap.passes.algebra.channel_map import Affine, ChannelMap
from normswap.passes.algebra.spread import Spread, Start, nodes_of, norm_nodes, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.calibrated import check_finite, needed_data
from normswap.passes.norm_operator import ROW_NORMS, replace_norm
from normswap.passes.select import select_sites, why_left

BALANCED, ONE_RANGE, POWERS = "balanced", "one-range", "powers-of-two"
_LEAST = 1e-5  # of the largest channel: one that hardly varies is not blown up further


@dataclass(kw_only=True)
class Smooth(Pass):
    """y = s y' + t of what a norm gives: its gamma and beta take the inverse, its readers s and t.

    Exact. gamma' = gamma / s, beta' = (beta - t) / s, W' = W diag(s), b' = b + W t, in float64 and
    rounded once; where the operators between a norm and its readers let that through by the table
    in ``algebra/rules.py``. Then all channels of y' have a range of their own that is alike, and
    integers with one scale for the tensor hold them. s and t come of y on ``data``.
    Skips, with the reason, norms whose output anything but linear layers and convolutions reads,
    and those over several axes.

    Attributes:
        scales: 'balanced', s = max|y|^alpha / max|W|^(1 - alpha) per channel, t = 0 (Xiao et al.,
            "SmoothQuant", 2023); 'one-range', s and t give every channel the mean of the widths
            and of the zero points (Li et al., "RepQ-ViT", 2023; of an RMSNorm, which has no beta,
            s alone); 'powers-of-two', s the nearest power of two to a channel's range over the
            median one, t = 0, which rounds nothing (Lin et al., "FQ-ViT", 2022).
        alpha: of 'balanced', from 0 (the weights are evened out) to 1 (the activations are).
        data: unlabelled inputs, as ``load_data`` gives them; ``swap`` fills it in.
        sites: which norms; see ``select_sites``. All by default.

    Raises:
        NormswapError: alpha outside 0 to 1, data that is missing or unfit, and values that are not
            finite.

    Examples:
        >>> result = swap(model, Smooth(scales="one-range"), data="images")
        >>> [reason for site, reason in result.skipped]
    """

    to: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "exact, ranges of channels move from norms into what reads them."
    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    data: Data | None = None
    scales: str = option(
        BALANCED,
        "even out activations against weights (the default), give all channels one range, or as "
        "nearly as powers of two do.",
        choices=(BALANCED, ONE_RANGE, POWERS),
    )
    alpha: float = option(
        0.5,
        "of balanced: how much of a channel's range goes into the weights, 0 to 1 (0.5 by "
        "default).",
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise NormswapError(f"--alpha: {self.alpha} is not between 0 and 1")

    def run(self, model: Model) -> PassResult:
        data = needed_data(self.data, self.to)
        chosen = select_sites(model.sites, self.sites)
        reasons = {site: why for site in chosen if (why := _why_not(site))}
        result = model.copy()
        for site in [s for s in chosen if s not in reasons]:
            try:
                result.graph.require(norm_operator(site.kind))
            except NormswapError as error:
                reasons[site] = str(error)
        edits, closed = WeightEdits(result.graph), norm_nodes(result.graph, model.sites)
        trials: dict[Site, Spread] = {}
        for site in [s for s in chosen if s not in reasons]:
            try:
                numbers = np.arange(1.0, site.normalized_shape[0] + 1)
                trials[site] = _change(edits, site, Affine(numbers, 0 * numbers), closed).checked()
            except Refusal as refusal:
                reasons[site] = str(refusal)
        found = dict(_ranges(model, list(trials), data))
        become: dict[Site, Site] = {}
        for site, (low, high) in found.items():
            check_finite(site, low, high)
            size = np.maximum(np.abs(low), np.abs(high))
            if not size.any():
                reasons[site] = "what it gives is 0 on the calibration data"
                continue
            change = self._scales(site, low, high, _columns(trials[site], len(size)))
            try:
                _change(edits, site, change, closed).checked().act()
            except Refusal as refusal:
                reasons[site] = str(refusal)
            else:
                become[site] = _norm_of(site, change)
        skipped = [(site, reasons[site]) for site in chosen if site in reasons]
        if not become:
            return PassResult(model, False, [], skipped)
        for site, norm in reversed(become.items()):  # a norm may read the output of another
            replace_norm(result.graph, norm, site)
        edits.write()
        result.graph.prune()
        return PassResult(result, True, list(become), skipped)

    def _scales(self, site: Site, low: Array, high: Array, columns: Array) -> Affine:
        """s and t [C], of the range of each channel and its largest weight."""
        size = np.maximum(np.abs(low), np.abs(high))
        none = np.zeros_like(size)
        if self.scales == ONE_RANGE and site.kind == "layer_norm":
            width = _floored(high - low)
            mean, zero = width.mean(), (low / width).mean()
            scale = width / mean
            return Affine(scale, low - scale * zero * mean)
        size = _floored(size)
        if self.scales == ONE_RANGE:
            return Affine(size / size.mean(), none)
        if self.scales == POWERS:
            return Affine(2.0 ** np.rint(np.log2(size / np.median(size))), none)
        weights = _floored(columns)
        return Affine(size**self.alpha / weights ** (1 - self.alpha), none)


def _why_not(site: Site) -> str:
    if why := why_left(site, ROW_NORMS):
        return why
    return "" if len(site.axes) == 1 else "it normalises over several axes"


def _floored(sizes: Array) -> Array:
    return np.maximum(sizes, _LEAST * sizes.max()) if sizes.any() else np.ones_like(sizes)


def _change(edits: WeightEdits, site: Site, map: Affine, closed: frozenset[Node]) -> Spread:
    """What follows if the output of a norm is written anew as y' with y = s y' + t."""
    graph: Graph = edits.graph
    x, y = graph.value(site.input), graph.value(site.output)
    if y.rank is None:
        raise Refusal(f"'{y.name}' has no known shape")
    change = ChannelMap.along(map.linear, map.shift, site.axes[0], y.rank)
    own = frozenset(nodes_of(graph, site))
    return spread(edits, Start(y, change, True, own, x, closed))


def _columns(trial: Spread, size: int) -> Array:
    """The largest magnitude [C] of the weights that multiply each channel. In ``trial`` each
    channel is scaled by its number."""
    largest = np.zeros(size)
    for weight, reads in trial.readers():
        array = np.abs(weight.weight)
        if array.ndim > 2:  # [groups, out, in, *sizes] of a convolution
            own = array.max(axis=(1, *range(3, array.ndim))).reshape(-1)
        else:
            own = array.max(axis=0)
        channels = np.rint(reads.linear).astype(int) - 1
        np.maximum.at(largest, channels, own)
        weight.__dict__.pop("weight", None)  # a float64 copy
    return largest


def _norm_of(site: Site, change: Affine) -> Site:
    """The norm that gives y' of y = s y' + t."""
    size = len(change.linear)
    weight = np.ones(size) if site.weight is None else site.weight
    bias = np.zeros(size) if site.bias is None else site.bias
    shifted = (bias - change.shift) / change.linear
    stays = site.bias is None and not np.any(change.shift)
    return replace(site, weight=weight / change.linear, bias=None if stays else shifted)


def _ranges(
    model: Model, sites: list[Site], data: Data
) -> Iterator[tuple[Site, tuple[Array, Array]]]:
    """The least and largest number [C] of each channel of what norms give."""
    if not sites:
        return
    graph, batches = model.graph, calibration_batches(model, sites, data)
    names = list(batches[0])
    run = graph.slice([graph.value(n) for n in names], [graph.value(s.output) for s in sites])
    low = [np.full(s.normalized_shape[0], np.inf) for s in sites]
    high = [np.full(s.normalized_shape[0], -np.inf) for s in sites]
    for batch in batches:
        for number, array in enumerate(run([batch[name] for name in names])):
            others = tuple(a for a in range(array.ndim) if a != sites[number].axes[0])
            low[number] = np.minimum(low[number], array.min(axis=others))
            high[number] = np.maximum(high[number], array.max(axis=others))
    yield from zip(sites, zip(low, high, strict=True), strict=True)
