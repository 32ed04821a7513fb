"""LayerNorms become BatchNorms, their constants fitted to calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from normswap.fit.channelwise import (
    FITS,
    Fitting,
    least_squares,
    safe_epsilon,
    share_left,
    with_statistics,
)
from normswap.fit.sweep import Readings
from normswap.graph.graph import Node, Value
from normswap.options import option
from normswap.passes.base import NormFit
from normswap.passes.calibrated import Calibrated, Fitted, Plan, SwapStop, check_useful
from normswap.passes.ffn_batch_norm import POSITIONS, ffn_stops
from normswap.passes.insert import insert_batch_norm
from normswap.passes.token_scale import group_moments, group_table, insert_token_scale


@dataclass(kw_only=True)
class BatchNorm(Calibrated):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta with constants per channel.

    Approximate: a LayerNorm's statistics depend on the token, a BatchNorm's do not. Each site is
    fitted on the upstream that is already swapped. With groups of ``tokens`` there is a scale and
    shift for each, which stay in the graph as Mul and Add. Skips norms of other kinds and over
    several axes. The options of all fitted passes are those of ``Calibrated``.

    Attributes:
        fit: 'copy' keeps gamma and beta; 'moments' gives the output the per-channel mean and
            variance of the original norm's output; 'least-squares' comes as near to that output as
            a scale and shift per channel can.
        ffn_batchnorm: also insert one behind the first linear layer of each FFN, which changes
            nothing at evaluation.
        ffn_position: 'before' or 'after' the FFN's activation.

    Examples:
        >>> how = BatchNorm(fit="least-squares", ffn_batchnorm=True)
        >>> student = swap(model, how, data="images").model
    """

    to: ClassVar[str] = "batchnorm"
    summary: ClassVar[str] = "a scale and shift per channel, fitted to --data; folds away."

    fit: str = option(
        "moments",
        "keep gamma and beta, match the mean and variance of the original's outputs (the "
        "default), or come nearest to these outputs.",
        choices=tuple(FITS),
    )
    ffn_batchnorm: bool = option(False, "also put one into each FFN.")
    ffn_position: str = option(
        "before", "before (the default) or after the FFN's activation.", choices=POSITIONS
    )

    def plan(self, plan: Plan, sites: Sequence[Fitted]) -> None:
        plan.stops += [_Swap(plan, fitted, FITS[self.fit], self.tokens) for fitted in sites]
        if self.ffn_batchnorm:
            stops, unfit = ffn_stops(plan.graph, sites, self.ffn_position)
            plan.stops += stops
            plan.notes += [f"no BatchNorm in the FFN of '{s.name}': {why}" for s, why in unfit]


class _Swap(SwapStop):
    """A BatchNorm, or a scale and shift per token, in place of one norm."""

    def __init__(self, plan: Plan, fitted: Fitted, fit: Fitting, tokens: str) -> None:
        super().__init__(plan, fitted)
        self._fit, self._tokens = fit, tokens

    def fitted_value(self, x: Value, readings: Readings, like: Node | None) -> Value:
        graph, site = self._plan.graph, self._fitted.site
        table = group_table(self._tokens, self._fitted, readings)
        train, held_out = group_moments(self._fitted, readings, table)
        fit = self._fit(site, train, held_out)
        error = share_left(held_out, fit)
        if self._fit is least_squares:  # the others match statistics, and are to be trained
            check_useful(error)
        cost = 0 if len(fit.scale) == 1 else self._fitted.channels
        self._plan.fits.append(NormFit(site, "a BatchNorm", error, cost))
        if len(fit.scale) > 1:
            new = insert_token_scale(graph, x, self._fitted, fit, table, readings, like)
            self._plan.stays[site.name] = len(table)
            return new
        moments = train.merged(held_out)
        constants = with_statistics(
            fit.scale[0],
            fit.shift[0],
            moments.x_mean[0],
            moments.x_variance[0],
            safe_epsilon(site.epsilon, moments.x_variance[0]),
        )
        return insert_batch_norm(graph, x, self._fitted.axis, constants, site.name, like)[0]
