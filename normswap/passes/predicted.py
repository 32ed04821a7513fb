"""LayerNorms become products: the scale of each token is predicted instead of computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normswap import distributed
from normswap.errors import NormswapError
from normswap.fit.calibration import over_processes
from normswap.fit.channelwise import ChannelFit, least_squares, share_left
from normswap.fit.log_scale import LogScale, log_factor, log_scales, predictions
from normswap.fit.moments import GroupMoments
from normswap.fit.sweep import Readings
from normswap.fit.tokens import Rows
from normswap.graph.graph import Array, Node, Value
from normswap.options import option
from normswap.passes.algebra.spread import norm_nodes
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import NormFit
from normswap.passes.calibrated import (
    Calibrated,
    Fitted,
    Plan,
    SwapStop,
    check_finite,
    check_held_out,
    check_useful,
    with_special,
)
from normswap.passes.fold_affine import readers_take
from normswap.passes.insert import (
    insert_centred,
    insert_linear,
    insert_log_scale,
    insert_scale_shift,
    insert_transpose,
)

_SHARE = 4  # channels for each direction
_FEWER = 4  # times, in the form between those with all directions and with none
_SLACK = 1.1  # times the least error: the cheapest form within it is taken
_SPECIAL = 1 / 8  # of the weight of all other tokens, for class and register tokens together


@dataclass(kw_only=True)
class Predicted(Calibrated):
    """y = gamma (x - mean) r + beta with log r = clip(w x + v |P x| + a u + c), in place of each
    norm.

    Approximate. The logarithm of what a norm multiplies a token by is predicted by ridge regression
    from the token x [C], from the absolute values of its products with the directions P [C, K] of
    largest variance, and from u, what was predicted for the same token at the norm before. gamma
    and beta are fitted again, per channel, to the original norm's output. Where the readers of a
    norm are linear they absorb the mean, gamma and beta (``Fold``): what remains are the products
    with P, v and w, an Exp and one product per token; no sum over channels, no square, no root, no
    division. Where they are not, the mean is one more column of products. Each norm has the
    cheapest form whose error of r on held-out samples is within a tenth of the best form's: a
    constant r, no directions, a quarter of them, all. What is predicted is clipped to the range of
    log r on the calibration data. A norm whose output would be further off on held-out samples than
    its mean is, stays. Raises NormswapError for too few samples to hold one out. Skips norms of
    other kinds and over several axes. The options of all fitted passes are those of ``Calibrated``.

    Attributes:
        directions: K, at most; a quarter of the channels by default.

    Examples:
        >>> result = swap(model, Predicted(directions=64), data="images")
        >>> result.fits[0].form, result.fits[0].held_out_error
    """

    to: ClassVar[str] = "predicted"
    summary: ClassVar[str] = "the scale of each token is predicted, fitted to --data."

    directions: int | None = option(
        None,
        "directions whose absolute values predict a token's scale, at most: a quarter of the "
        "channels by default.",
        metavar="K",
        type=int,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions is not None and self.directions < 0:
            raise NormswapError(f"--directions: takes 0 or more, got {self.directions}")
        if self.tokens != "all":
            raise NormswapError("--to predicted: its scale is each token's own; leave --tokens out")

    def plan(self, plan: Plan, sites: Sequence[Fitted]) -> None:
        check_held_out(plan, self.to)
        plan.stops += predicted_stops(plan, sites, self.directions)


def predicted_stops(
    plan: Plan, sites: Sequence[Fitted], directions: int | None
) -> list[PredictedStop]:
    """A stop for each of ``sites``."""
    chains: dict[str, list[PredictedStop]] = {}
    edits, closed = WeightEdits(plan.graph), norm_nodes(plan.graph, plan.located)
    for fitted in with_special(plan.original, plan.located, sites, plan.batches):
        absorbed = readers_take(edits, fitted.site, closed)
        chain = chains.setdefault(fitted.site.tower, [])
        chain.append(PredictedStop(plan, fitted, chain, directions, absorbed))
    return [stop for chain in chains.values() for stop in chain]


class PredictedStop(SwapStop):
    """The predicted scale in place of one norm; ``chain``: those of its tower, in order."""

    def __init__(
        self,
        plan: Plan,
        fitted: Fitted,
        chain: Sequence[PredictedStop],
        directions: int | None,
        absorbed: bool,
    ) -> None:
        super().__init__(plan, fitted)
        most = fitted.channels // _SHARE if directions is None else directions
        most = min(most, fitted.channels - 1)  # a square matrix would seem to be one to fold
        self._counts = sorted({0, most // _FEWER, most})
        self._chain, self._absorbed = chain, absorbed
        self._centred = fitted.site.kind == "layer_norm"

    def fitted_value(self, x: Value, readings: Readings, like: Node | None) -> Value:
        site = self._fitted.site
        before = self.reads[1] if len(self.reads) > 1 else None
        scale, channels, error = self._choice(readings, before)
        check_useful(error)
        new, log_scale = self._written(x, scale, channels, before, like)
        for later in self._chain[self._chain.index(self) + 1 :]:
            if log_scale is not None and later.is_about_the_tokens_of(log_scale):
                later.reads = (later.reads[0], log_scale)
        centre = self._fitted.channels if self._centred and not self._absorbed else 0
        cost = centre + scale.multiply_adds
        self._plan.fits.append(NormFit(site, _form(scale), error, cost))
        return new

    def is_about_the_tokens_of(self, log_scale: Value) -> bool:
        """Whether ``log_scale`` [..., 1] has a row for each of the input [..., C], in its dtype."""
        shape = self.reads[0].shape
        if shape is None or log_scale.shape is None or log_scale.dtype != self.reads[0].dtype:
            return False
        axis = self._fitted.axis
        return (*shape[:axis], *shape[axis + 1 :], 1) == log_scale.shape

    # -- the fit -----------------------------------------------------------------------------

    def _choice(
        self, readings: Readings, before: Value | None
    ) -> tuple[LogScale, ChannelFit, float]:
        """The scale per token, scale and shift per channel of what it leaves, and the share of the
        output's variance that is left on held-out samples."""
        site, size = self._fitted.site, self._fitted.channels

        def parts() -> Iterator[tuple[Array, Array | None, Array]]:
            for part in self._rows(readings, before):
                check_finite(site, part.arrays[0])
                yield part.arrays[0], _before(part), part.held_out

        scales = log_scales(parts, size, site.epsilon, self._centred, self._counts)
        sums = [[GroupMoments(1, size) for _ in range(2)] for _ in scales]
        wrong, rows = np.zeros(len(scales)), 0
        for part in self._rows(readings, before):
            x, y = part.arrays[0].astype(np.float64), part.arrays[-1]
            predicted = predictions(scales, x, _before(part))
            off = np.exp(predicted - log_factor(x, site.epsilon, self._centred)) - 1
            wrong += np.square(off[:, part.held_out]).sum(1)
            rows += int(part.held_out.sum())
            rest = x - x.mean(1, keepdims=True) if self._centred else x
            for own, factor in zip(sums, np.exp(predicted), strict=True):
                split = part.parts(rest * factor[:, None], y, np.zeros(len(x), np.intp))
                for moments, arrays in zip(own, split, strict=True):
                    moments.add(*arrays)
        wrong = np.sum(distributed.gathered(wrong), 0) / max(sum(distributed.gathered(rows)), 1)
        least = next(i for i, error in enumerate(wrong) if error <= _SLACK * min(wrong))
        self._plan.losses[site] = float(wrong[0]), float(wrong[least])
        train, held_out = (over_processes(moments) for moments in sums[least])
        check_finite(site, train.x_mean, train.y_mean, train.x_variance)
        fit = least_squares(site, train, held_out)
        return scales[least], fit, share_left(held_out, fit)

    def _rows(self, readings: Readings, before: Value | None) -> Iterator[Rows]:
        """Rows of the input, of the logarithm at the norm before if there is one, and of the
        output. Those of class and register tokens several times, so that they make up a share of
        all: what a model gives is often read from these."""
        axis, special = self._fitted.axis, self._fitted.special
        axes = (axis, axis) if before is None else (axis, (before.rank or 1) - 1, axis)
        for part in self._fitted.rows(readings, axes):
            positions = int(part.position.max(initial=-1)) + 1
            if special is None or len(special) != positions:
                yield part
                continue
            times = max(1, round(_SPECIAL * (~special).sum() / special.sum()))
            again = np.where(special, times, 1)[part.position]
            rows = np.repeat(np.arange(len(again)), again)
            arrays = [array[rows] for array in part.arrays]
            yield Rows(arrays, part.position[rows], part.held_out[rows])

    # -- the graph ---------------------------------------------------------------------------

    def _written(
        self, x: Value, scale: LogScale, fit: ChannelFit, before: Value | None, like: Node | None
    ) -> tuple[Value, Value | None]:
        """The value in place of the norm, and the logarithm that was predicted, if it varies."""
        graph, site, axis = self._plan.graph, self._fitted.site, self._fitted.axis
        name, size = site.name, self._fitted.channels
        last = len(x.shape or ()) - 1
        perm = [i for i in range(last + 1) if i != axis] + [axis]
        inner = insert_transpose(graph, x, perm, f"{name}.channels_last", like)
        gamma, beta = fit.scale[0], fit.shift[0]
        log_scale = None
        rest = inner
        if not self._absorbed and self._centred:
            rest = insert_centred(graph, inner, name, like)
        if scale.is_constant:
            gamma = gamma * np.exp(scale.constant)
        else:
            log_scale = insert_log_scale(graph, inner, scale, before, name, like)
            factor = graph.insert("Exp", [log_scale], name=f"{name}.factor", like=like)
            rest = graph.insert("Mul", [rest, factor], name=f"{name}.normed", like=like)
        if self._absorbed and self._centred:
            matrix = gamma[:, None] * (np.eye(size) - 1 / size)
            value = insert_linear(graph, rest, last, matrix, beta, name, like)
        else:
            value = insert_scale_shift(graph, rest, gamma, beta, name, like)
        back = [perm.index(i) for i in range(last + 1)]
        return insert_transpose(graph, value, back, f"{name}.channels_back", like), log_scale


def _before(part: Rows) -> Array | None:
    return part.arrays[1][:, 0].astype(np.float64) if len(part.arrays) > 2 else None


def _form(scale: LogScale) -> str:
    if scale.is_constant:
        return "a constant scale"
    directions = scale.absolute.size
    return f"a scale predicted from {directions} directions" if directions else "a linear scale"
