"""What the values of an exit say: the axes of its statistics, its kind, and why it is no norm."""

from __future__ import annotations

import math

import numpy as np

from normswap.graph.graph import Array
from normswap.norms.formula import Norm, Statistics
from normswap.norms.probes import touched

EPSILON_OUTSIDE = "epsilon is not added to the variance under the root"
BATCH = "it reduces over the batch (axis 0)"
L2 = "it is an L2 normalisation: x / ||x||"
EPSILON_DIFFERS = "epsilon differs within what is normalised"
AXES = "its statistics are taken over different axes"
STATISTIC = (
    "what it divides by is not the root mean square of what it divides: a statistic, an exponent "
    "or an operand is another"
)
SCALE = (
    "its result changes with the scale of its input: an exponent is not that of a norm, or what "
    "it divides by is not the root of it"
)
NOT_FINITE = "it divides by zero or overflows: its values are not finite on ordinary inputs"
# Of the values around an anchor the one that comes closest to a norm tells what went wrong.
_CLOSEST = (L2, EPSILON_DIFFERS, EPSILON_OUTSIDE, BATCH, AXES, STATISTIC, NOT_FINITE, SCALE)
_SAME = 1e-9
_FULL = 0.9  # of what a norm reaches; a weight of zero hides some
_FACTOR = 30.0  # by which a norm's output may grow from unit to large scale
_APART = 0.05  # of the largest value; below it the weight and bias are to blame


def statistics_of(changed: Array, nudged_at: tuple[int, ...]) -> list[Statistics] | str:
    """The statistics that an exit may have, from which elements change with one of the input.

    ``changed``: [probes, *shape], true where a change of the element ``nudged_at`` shows.
    Otherwise the reason why it has none.
    """
    positions = touched(changed)
    rank = len(positions)
    axes = tuple(a for a in range(rank) if len(positions[a]) > 1)
    if not axes:
        return "no statistic of other elements enters"
    if 0 in axes and rank > 1:
        return BATCH
    found = [Statistics(axes, True), Statistics(axes, False)]
    if rank > 1 and axes == tuple(range(1, rank)):
        first, last, size = int(positions[1][0]), int(positions[1][-1]), changed.shape[2]
        span = last - first + 1
        if span < size and size % span == 0 and nudged_at[1] // span == first // span:
            found.insert(0, Statistics(axes, True, groups=size // span))
    return found


def kind_of(norm: Norm, rank: int) -> str:
    """One of ``KINDS``, or the reason why the proven formula is none of them.

    A norm whose weight and bias go with the channels and not with what is normalised is an
    InstanceNorm; one over all but the batch with a weight per channel a GroupNorm.
    """
    statistics = norm.statistics
    if not statistics.centred:
        first = float(norm.weight.flat[0])
        uniform = bool(np.all(np.abs(norm.weight - first) <= _SAME * abs(first)))
        if norm.epsilon == 0 and uniform and abs(first - 1) > _SAME:
            return L2
        return "rms_norm"
    if statistics.groups is not None:
        return "group_norm"
    varying = {axis for axis, varies in zip(norm.over, _varying(norm), strict=True) if varies}
    spatial = tuple(range(2, rank))
    if not varying <= set(statistics.axes):
        return "instance_norm" if statistics.axes == spatial else "its scale depends on the row"
    if rank > 3 and statistics.axes == spatial and not varying:
        return "instance_norm"
    if rank > 2 and statistics.axes == tuple(range(1, rank)) and varying == {1}:
        return "group_norm"
    return "layer_norm"


def _varying(norm: Norm) -> list[bool]:
    """Along which of its axes weight or bias changes."""
    pairs = (norm.weight, norm.bias)
    return [
        any(bool(np.any(a != np.take(a, [0], axis))) for a in pairs)
        for axis in range(norm.weight.ndim)
    ]


def is_l2(statistics: Statistics, shape: tuple[int, ...], weight: Array) -> bool:
    """x / ||x||: a mean of squares with the same weight of 1/sqrt(n) everywhere."""
    count = math.prod(shape[axis] for axis in statistics.axes)
    unit = 1 / math.sqrt(count)
    return not statistics.centred and bool(np.all(np.abs(weight - unit) <= 1e-6 * unit))


def why_no_scale(plain: Array, nudged: Array, large: Array) -> str:
    """Why an exit is no norm of its entry even where epsilon vanishes."""
    mask = (plain != nudged).any(axis=0)
    box = mask[np.ix_(*touched(plain != nudged))]
    if not box.all() and box.mean() < _FULL:
        return AXES
    before, behind = (np.std(y - y.mean(tuple(range(y.ndim - 1)))) for y in (plain, large))
    growth = float(behind / max(before, 1e-300))
    if not 1 / _FACTOR < growth < _FACTOR:
        return SCALE
    return STATISTIC


def likeliest(reasons: list[str]) -> str:
    """The reason to report of several, for as many values."""
    known = [reason for reason in _CLOSEST if reason in reasons]
    return known[0] if known else reasons[0]


def why_no_epsilon(statistics: Statistics, x: Array, y: Array, weight: Array, bias: Array) -> str:
    """Why an exit that is a norm at a large scale is none at a tiny one."""
    scaled = weight * statistics.centre(x)
    part = y - bias
    axes = tuple(axis + 1 for axis in statistics.axes)
    with np.errstate(all="ignore"):
        inverse = (part * scaled).sum(axes, keepdims=True) / np.square(scaled).sum(
            axes, keepdims=True
        )
        apart = np.abs(part - scaled * inverse).max() / np.abs(scaled * inverse).max()
    if statistics.groups is None and np.isfinite(apart) and apart > _APART:
        return EPSILON_DIFFERS
    return EPSILON_OUTSIDE
