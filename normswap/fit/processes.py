"""Fits over the data of several processes: each runs its share, and the sums are merged."""

from __future__ import annotations

import functools
from typing import Protocol, Self, TypeVar

from normswap import distributed
from normswap.io.data import Data


class Moments(Protocol):
    def merged(self, other: Self, /) -> Self: ...


M = TypeVar("M", bound=Moments)


def own_share(data: Data) -> Data:
    """The samples of this process: an equal part of the data, in the order of the processes."""
    if distributed.world() == 1:
        return data
    start, end = (data.count * (distributed.rank() + i) // distributed.world() for i in (0, 1))
    labels = None if data.labels is None else data.labels[start:end]
    return Data({name: array[start:end] for name, array in data.feeds.items()}, labels)


def first_number(count: int) -> int:
    """The number, within all the data, of the first of this process's ``count`` samples."""
    return sum(distributed.gathered(count)[: distributed.rank()])


def over_processes(moments: M) -> M:
    """The moments of the rows of all processes, the same in each of them.

    Every process must call it. Merged in the order of the processes, by the formula of Chan.
    """
    return functools.reduce(lambda a, b: a.merged(b), distributed.gathered(moments))
