"""Calibration data: this process's share of it, in batches, and moments over all processes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeVar

from normswap import distributed
from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.model import Model
from normswap.norms.site import Site

Batches = Sequence[Mapping[str, Array]]
"""Feeds by input name, per batch."""

_ELEMENTS = 16 * 3 * 224 * 224  # per batch, of all inputs together
_SMALLEST, _LARGEST = 16, 256


class Moments(Protocol):
    def merged(self, other: Self, /) -> Self: ...


M = TypeVar("M", bound=Moments)


def own_share(data: Data) -> Data:
    """The samples of this process: an equal part of the data, in the order of the processes."""
    if distributed.world() == 1:
        return data
    start, end = (data.count * (distributed.rank() + i) // distributed.world() for i in (0, 1))
    return data.part(slice(start, end))


def first_number(count: int) -> int:
    """The index, within all the data, of the first of this process's ``count`` samples."""
    return sum(distributed.gathered(count)[: distributed.rank()])


def over_processes(moments: M) -> M:
    """The moments of the rows of all processes, merged in their order; the same in each.

    Every process must call it.
    """
    return functools.reduce(lambda a, b: a.merged(b), distributed.gathered(moments))


def calibration_batches(model: Model, sites: Sequence[Site], data: Data) -> list[dict[str, Array]]:
    """Batches for what ``sites`` depend on; a model with a fixed batch size gets only full ones.

    Raises NormswapError if the data lacks an input that they depend on, or fills no batch.
    """
    graph = model.graph
    read = {v.name for v in graph.sources(graph.value(site.output) for site in sites)}
    needed = [spec for spec in model.inputs if spec.name in read]
    for spec in needed:
        if spec.name not in data.feeds:
            raise NormswapError(
                f"{model.name}: the calibration data lacks '{spec.name}', which the norms to be "
                f"swapped depend on; it holds {', '.join(data.feeds)}"
            )
    fixed = {spec.shape[0] for spec in needed if isinstance(spec.shape[0], int)}
    if len(fixed) > 1:
        raise NormswapError(
            f"{model.name}: cannot be calibrated, its inputs have several fixed batches: "
            f"{', '.join(map(str, sorted(fixed)))}"
        )
    elements = sum(math.prod(data.feeds[spec.name].shape[1:]) for spec in needed)
    size = next(iter(fixed), min(max(_ELEMENTS // max(elements, 1), _SMALLEST), _LARGEST))
    count = data.count - data.count % size if fixed else data.count
    if not count:
        raise NormswapError(
            f"{model.name}: takes batches of {size}, the calibration data holds {data.count}"
        )
    return list(data.part(slice(count)).batches(size))
