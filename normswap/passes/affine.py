"""LayerNorms become full affine maps, fitted by ridge regression, which their readers absorb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normswap.fit.channelwise import ChannelFit, least_squares, share_left
from normswap.fit.covariance import held_out_rows, joint_moments
from normswap.fit.moments import GroupMoments
from normswap.fit.ridge import RidgeFits, share_left_by
from normswap.fit.sweep import Readings
from normswap.fit.tokens import Rows
from normswap.graph.graph import Array, Node, Value
from normswap.options import option
from normswap.passes.base import NormFit
from normswap.passes.calibrated import (
    Calibrated,
    Fitted,
    Plan,
    SwapStop,
    check_finite,
    check_held_out,
    check_useful,
)
from normswap.passes.insert import insert_linear
from normswap.passes.refit_writers import writer_stops
from normswap.passes.token_scale import group_moments, group_table, insert_token_scale

_FEW = "rows to fit are fewer than its"


@dataclass(kw_only=True)
class Affine(Calibrated):
    """y = A x + b with a full matrix A [C, C], in place of each norm.

    Approximate. A and b are the ridge regression of the original norm's output on the input that
    the swapped model has there, which shrinks towards the scale and shift per channel of least
    squares; its strength is that with the least error on every fifth sample, which it is not fitted
    to. The norm's readers absorb A and b (``Fold``). With groups of ``tokens`` the scale and shift
    are each group's own and stay in the graph, A and b are common to all and fold:
    y = A (s_g x + t_g) + b, and s_g (A x + b) + t_g for a norm of the embedding, where A moves up.
    Raises NormswapError for too few samples to hold one out. Skips norms of other kinds and over
    several axes. The options of all fitted passes are those of ``Calibrated``.

    Attributes:
        refit_writers: also refit what writes to the residual stream behind the first swapped norm
            (attention out-projection, second linear layer of the FFN) towards the original's
            stream, shrinking towards the old weights.

    Examples:
        >>> how = Affine(refit_writers=True, ensure="top1>=0.99")
        >>> result = swap(model, how, data="images")
    """

    to: ClassVar[str] = "affine"
    summary: ClassVar[str] = "a full matrix, fitted to --data; folds away."

    refit_writers: bool = option(
        False,
        "also fit what writes to the residual stream (attention out-projection, second linear "
        "layer of the FFN) to the original's stream.",
    )

    def plan(self, plan: Plan, sites: Sequence[Fitted]) -> None:
        check_held_out(plan, self.to)
        fits = RidgeFits()
        plan.stops += [AffineStop(plan, fitted, self.tokens, fits) for fitted in sites]
        if self.refit_writers:
            stops, notes = writer_stops(plan, sites)
            plan.stops += stops
            plan.notes += notes


class AffineStop(SwapStop):
    """An affine map in place of one norm."""

    def __init__(self, plan: Plan, fitted: Fitted, tokens: str, fits: RidgeFits) -> None:
        super().__init__(plan, fitted)
        self._tokens, self._fits = tokens, fits

    def fitted_value(self, x: Value, readings: Readings, like: Node | None) -> Value:
        graph, site = self._plan.graph, self._fitted.site
        table = group_table(self._tokens, self._fitted, readings)

        def scaled(value: Value, fit: ChannelFit) -> Value:
            self._plan.stays[site.name] = len(table)
            return insert_token_scale(graph, value, self._fitted, fit, table, readings, like)

        def mapped(value: Value, weight: Array, bias: Array) -> Value:
            return insert_linear(graph, value, self._fitted.axis, weight, bias, site.name, like)

        if not table.any():
            weight, bias, error = self._fit_together(readings)
            self._tell(error, 0)
            return mapped(x, weight, bias)
        if site.role == "embedding":  # the stream reads it: only what computes it can absorb A
            weight, bias, _ = self._fit_together(readings)
            behind = group_moments(self._fitted, readings, table, lambda x: x @ weight.T + bias)
            fit = least_squares(site, *behind)
            self._tell(share_left(behind[1], fit), self._fitted.channels)
            return scaled(mapped(x, weight, bias), fit)
        start, weight, bias, error = self._fit_groups(readings, table)
        self._tell(error, self._fitted.channels)
        return mapped(scaled(x, start), weight, bias)

    def _tell(self, error: float, cost: int) -> None:
        """Notes what the fit costs. Raises Refusal for one that is of no use."""
        check_useful(error)
        self._plan.fits.append(NormFit(self._fitted.site, "an affine map", error, cost))

    def _fit_together(self, readings: Readings) -> tuple[Array, Array, float]:
        """The map [C, C], [C] from the input to the original's output, and the share of its
        variance that is left on the samples held out."""
        channels = self._fitted.channels

        def parts() -> Iterator[tuple[Array, Array, Array]]:
            for part in self._rows(readings):
                x, y = part.arrays
                yield x, y, part.held_out

        def scaled() -> Iterator[tuple[Array, Array]]:
            return ((x.astype(np.float64) * scale + shift, y) for x, y in held_out_rows(parts))

        train = joint_moments(parts, channels, channels)
        check_finite(self._fitted.site, train.x_mean, train.y_mean, train.xx)
        if train.count < channels and not any(_FEW in note for note in self._plan.notes):
            few = f"'{self._fitted.site.name}': {train.count} {_FEW} {channels} channels"
            self._plan.notes.append(
                f"{few}: the fit leans on scales per channel; give it more data"
            )
        none = GroupMoments(1, channels)  # of one group nothing is held out
        start = least_squares(self._fitted.site, GroupMoments.of_one_group(train), none)
        scale, shift = start.scale[0], start.shift[0]
        fit = self._fits.fit(train.scaled(scale, shift), scaled, np.eye(channels))
        error = share_left_by(fit, scaled)
        return fit.weight.T * scale, fit.bias + shift @ fit.weight, error

    def _fit_groups(
        self, readings: Readings, table: Array
    ) -> tuple[ChannelFit, Array, Array, float]:
        """Scale and shift by group, the map [C, C], [C] from what they give to the original's
        output, and the share of its variance that is left on the samples held out."""
        channels = self._fitted.channels
        start = least_squares(self._fitted.site, *group_moments(self._fitted, readings, table))
        scale, shift = start.scale[table], start.shift[table]

        def parts() -> Iterator[tuple[Array, Array, Array]]:
            for part in self._rows(readings):
                x, y = part.arrays
                z = x.astype(np.float64) * scale[part.position] + shift[part.position]
                yield z, y, part.held_out

        train = joint_moments(parts, channels, channels)
        fit = self._fits.fit(train, lambda: held_out_rows(parts), np.eye(channels))
        error = share_left_by(fit, lambda: held_out_rows(parts))
        return start, fit.weight.T, fit.bias, error

    def _rows(self, readings: Readings) -> Iterator[Rows]:
        return self._fitted.rows(readings, (self._fitted.axis, self._fitted.axis))
