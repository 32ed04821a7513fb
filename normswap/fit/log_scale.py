"""The deviation of a token's channels, predicted from the token by products and absolute values.

A LayerNorm multiplies each row by 1 / sqrt(var + eps), an RMSNorm by 1 / sqrt(E[x^2] + eps). Its
logarithm is close to a linear function of the row x, of |p x| for the directions p of largest
variance, and of the logarithm that was predicted for the same token at the norm before: one ridge
regression. No norm is computed that way, so nothing is squared, summed up, rooted or divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normswap.fit.calibration import over_processes
from normswap.fit.covariance import JointMoments, JointSums, joint_moments
from normswap.fit.moments import varies
from normswap.fit.ridge import RidgeFits
from normswap.graph.graph import Array

Parts = Callable[[], Iterator[tuple[Array, Array | None, Array]]]
"""Called as often as needed, gives rows in parts: x [N, C], the logarithm that was predicted for
them at the norm before [N] if there is one, and which rows are held out [N]."""

_STILL = 1e-12  # of the largest variance of a feature: less is rounding
_JUDGES = 16384  # rows held out that choose a strength, at most and about, in each process


@dataclass(frozen=True)
class LogScale:
    """log r(x) = clip(linear x + absolute |directions^T x| + before u + constant, low, high).

    ``linear`` [C], ``directions`` [C, K], ``absolute`` [K]; ``before``: the factor of the logarithm
    u that was predicted for the same token at the norm before. All in float64.
    """

    linear: Array
    directions: Array
    absolute: Array
    before: float
    constant: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def multiply_adds(self) -> int:
        """For each row: of the products with the directions and with the weights, and of the row
        with its scale."""
        if self.is_constant:
            return 0
        channels, directions = self.directions.shape
        return channels * (directions + 2) + directions

    @property
    def is_constant(self) -> bool:
        return not (self.linear.any() or self.absolute.any() or self.before)


def log_factor(x: Array, epsilon: float, centred: bool) -> Array:
    """log of what the norm multiplies each row of ``x`` [N, C] by; [N] in float64."""
    x = x.astype(np.float64)
    power = x.var(1) if centred else np.square(x).mean(1)
    return -0.5 * np.log(power + max(epsilon, np.finfo(np.float64).tiny))


def predictions(scales: Sequence[LogScale], x: Array, before: Array | None) -> Array:
    """What each of ``scales`` predicts for rows ``x`` [N, C], with ``before`` [N]; [S, N].

    The directions of one are the first ones of any that has more.
    """
    x = x.astype(np.float64)
    most = max((scale.directions for scale in scales), key=lambda d: d.shape[1])
    size = np.abs(x @ most)
    found = []
    for scale in scales:
        total = x @ scale.linear + size[:, : scale.absolute.size] @ scale.absolute + scale.constant
        if before is not None:
            total = total + scale.before * before
        found.append(np.clip(total, scale.low, scale.high))
    return np.stack(found)


def log_scales(
    parts: Parts, channels: int, epsilon: float, centred: bool, counts: Sequence[int]
) -> list[LogScale]:
    """A fit with each of ``counts`` of directions, and before them one that is a constant; all are
    clipped to the range of the logarithm over the rows.

    ``centred``: the norm is a LayerNorm. The directions are those of the largest mean square of the
    (centred) rows to fit. Raises NormswapError for numbers that are not finite.
    """
    directions = _directions(parts, channels, centred, max(counts))
    chained = next(iter(parts()))[1] is not None
    start = channels + int(chained)
    sums, judges, range_ = JointSums(start + max(counts), 1), _Thinned(_JUDGES), Range()
    for x, before, held_out in parts():
        own = x.astype(np.float64)
        columns = [] if before is None else [before[:, None]]
        features = np.concatenate([*columns, own, np.abs(own @ directions)], 1)
        target = log_factor(own, epsilon, centred)[:, None]
        range_.add(target)
        sums.add(features, target, ~held_out)
        judges.add(features[held_out], target[held_out])
    moments = over_processes(sums.moments())
    none = np.zeros((channels, 0))
    mean = float(moments.y_mean[0])
    fitted = [LogScale(np.zeros(channels), none, np.zeros(0), 0.0, mean)]
    fits = RidgeFits()
    for count in counts:
        weight, constant = _fit(moments, judges, start + count, fits)
        before_factor = float(weight[0]) if chained else 0.0
        linear, absolute = weight[start - channels : start], weight[start:]
        fit = LogScale(linear, directions[:, :count], absolute, before_factor, constant)
        fitted.append(fit)
    return range_.bounded(fitted)


class Range:
    """The least and the largest of what a norm multiplies rows by, as logarithms."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def add(self, factors: Array) -> None:
        """Takes in ``log_factor``, of any shape."""
        if factors.size:
            self.low = min(self.low, float(factors.min()))
            self.high = max(self.high, float(factors.max()))

    def merged(self, other: Range) -> Range:
        both = Range()
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        return both

    def bounded(self, scales: Sequence[LogScale]) -> list[LogScale]:
        """The scales clipped to the range of all processes."""
        whole = over_processes(self)
        return [replace(scale, low=whole.low, high=whole.high) for scale in scales]


def _directions(parts: Parts, channels: int, centred: bool, count: int) -> Array:
    """The ``count`` directions [C, count] of largest mean square, those of centred rows centred."""
    if not count:
        return np.zeros((channels, 0))

    def rows() -> Iterator[tuple[Array, Array, Array]]:
        for x, _, held_out in parts():
            own = x.astype(np.float64)
            own = own - own.mean(1, keepdims=True) if centred else own
            yield own, np.zeros((len(own), 0)), held_out

    sums = joint_moments(rows, channels, 0)
    second = sums.xx / max(sums.count, 1) + np.outer(sums.x_mean, sums.x_mean)
    found: Array = np.linalg.eigh(second)[1][:, ::-1][:, :count]
    return found - found.mean(0) if centred else found


class _Thinned:
    """Pairs of rows, evenly thinned out where they become more than twice ``most``."""

    def __init__(self, most: int) -> None:
        self._most, self._every, self._seen = most, 1, 0
        self.rows: list[tuple[Array, Array]] = []

    def add(self, x: Array, y: Array) -> None:
        chosen = (np.arange(self._seen, self._seen + len(x)) % self._every) == 0
        self._seen += len(x)
        self.rows.append((x[chosen], y[chosen]))
        if sum(len(x) for x, _ in self.rows) > 2 * self._most:
            x, y = (np.concatenate(arrays)[::2] for arrays in zip(*self.rows, strict=True))
            self.rows, self._every = [(x, y)], 2 * self._every


def _fit(
    moments: JointMoments, judges: _Thinned, size: int, fits: RidgeFits
) -> tuple[Array, float]:
    """The ridge regression of the logarithm on the first ``size`` features, each scaled to unit
    deviation: [size] and the constant."""
    variance = moments.xx.diagonal()[:size] / max(moments.count, 1)
    alive = varies(variance, moments.x_mean[:size]) & (variance > _STILL * variance.max(initial=0))
    scale = np.where(alive, 1 / np.sqrt(np.where(alive, variance, 1.0)), 0.0)
    means, xx, xy = moments.x_mean[:size], moments.xx[:size, :size], moments.xy[:size]
    some = JointMoments(moments.count, means, moments.y_mean, xx, xy, moments.yy)

    def held_out() -> Iterator[tuple[Array, Array]]:
        return ((x[:, :size] * scale, y) for x, y in judges.rows)

    fit = fits.fit(some.scaled(scale, np.zeros(size)), held_out, np.zeros((size, 1)))
    return fit.weight[:, 0] * scale, float(fit.bias[0])
