"""A scale and shift for each token, where groups of tokens are fitted apart."""

from __future__ import annotations

from collections.abc import Callable

from normswap.fit.calibration import over_processes
from normswap.fit.channelwise import ChannelFit
from normswap.fit.moments import GroupMoments
from normswap.fit.sweep import Readings
from normswap.fit.tokens import Layout, groups
from normswap.graph.graph import Array, Graph, Node, Value
from normswap.passes.calibrated import Fitted, check_finite
from normswap.passes.insert import insert_scale_shift


def group_table(tokens: str, fitted: Fitted, readings: Readings) -> Array:
    """The group of each position of a site's input; [positions] integers."""
    array, layout = _first(fitted, readings)
    return groups(tokens, fitted.special, layout.rows(array).shape[1])


def group_moments(
    fitted: Fitted,
    readings: Readings,
    table: Array,
    mapped: Callable[[Array], Array] = lambda x: x,
) -> tuple[GroupMoments, GroupMoments]:
    """The moments of a site's input, ``mapped`` by rows [N, C], and of the original's output by
    group of token: those of the samples to fit, and of those held out."""
    size = int(table.max()) + 1, fitted.channels
    sums = GroupMoments(*size), GroupMoments(*size)
    for part in fitted.rows(readings, (fitted.axis, fitted.axis)):
        x, y = mapped(part.arrays[0]), part.arrays[1]
        for moments, arrays in zip(sums, part.parts(x, y, table[part.position]), strict=True):
            moments.add(*arrays)
    sums = over_processes(sums[0]), over_processes(sums[1])
    for moments in sums:
        check_finite(fitted.site, moments.x_mean, moments.y_mean, moments.x_variance)
    return sums


def insert_token_scale(
    graph: Graph,
    x: Value,
    fitted: Fitted,
    fit: ChannelFit,
    table: Array,
    readings: Readings,
    like: Node | None,
) -> Value:
    """``x * scale + shift`` with the constants of each token's group."""
    array, layout = _first(fitted, readings)
    scale, shift = (layout.constant(a[table], array.shape) for a in (fit.scale, fit.shift))
    return insert_scale_shift(graph, x, scale, shift, fitted.site.name, like)


def _first(fitted: Fitted, readings: Readings) -> tuple[Array, Layout]:
    array = next(iter(readings))[0]
    count = len(readings.samples[0])
    return array, Layout.of(array.shape, fitted.axis, count, readings.examples[0])
