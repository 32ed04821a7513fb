"""Two norms on inputs of their own, for faults that no input of the model may bring out.

What a norm gets inside a model is seldom what tells a wrong norm from a right one: rows with a
large mean, with a variance of the size of epsilon, with an outlier. Here each norm of the reference
and its twin get just that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph
from normswap.norms.site import Site
from normswap.parity.bounds import BoundedErrors, draws_in_doubt
from normswap.parity.neighbours import one_ulp_off
from normswap.parity.pairing import RunFailed, reported_failures

_LARGE_MEAN = 1e4
_ULPS_OF_DEVIATION = 64.0  # a mean that large leaves a deviation of one this many units
_OUTLIER = 100.0


def errors_alone(
    reference: Graph, candidate: Graph, site: Site, twin: Site
) -> Iterator[BoundedErrors]:
    """The errors of ``twin`` against ``site`` in float64, for every kind of rows; none where the
    norms' own inputs cannot be fed. For two norms of one kind that normalise the same axes."""
    value, other = reference.value(site.input), candidate.value(twin.input)
    if value.shape is None or value.dtype is None or other.shape != value.shape:
        return
    ends = [reference.value(site.output)], [candidate.value(twin.output)]
    try:
        truth = reference.slice([value], ends[0], np.float64)
        ours, theirs = reference.slice([value], ends[0]), candidate.slice([other], ends[1])
    except (NormswapError, ValueError):
        return
    for seed, (name, draw) in enumerate(_ROWS.items()):
        rng = np.random.default_rng(seed)
        rows = draw(rng, value.shape, site, value.dtype).astype(value.dtype)
        try:
            with reported_failures():
                [exact], [own], [rewritten] = truth([rows]), ours([rows]), theirs([rows])
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


_ROWS: dict[str, Callable[[np.random.Generator, tuple[int, ...], Site, np.dtype], Array]] = {
    "large mean": _large_mean,
    "variance of the size of epsilon": _variance_of_epsilon,
    "outlier channel": _outlier,
}
