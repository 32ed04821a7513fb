"""How evenly the channels of what norms read and give are filled, on real data.

Integers with one scale for a tensor divide its whole range into equal steps: where one channel is a
hundred times as large as the others, these share a hundredth of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data, load_data
from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.parity.batches import batches_of
from normswap.shown import Shown


@dataclass(frozen=True)
class ChannelRanges:
    """The channels of a value on all the data.

    Attributes:
        largest: the largest magnitude.
        channel: the channel that it is in.
        median: the median over the channels of each one's largest magnitude.
        kurtosis: E[(x - m)^4] / E[(x - m)^2]^2 of all elements, m their mean: 3 for a normal
            distribution, 1.8 for an even one, much more where few are far out. NaN where nothing
            varies.

    Examples:
        >>> found = ranges(model, data="images").norms[0].reads
        >>> found.ratio, found.channel
    """

    largest: float
    channel: int
    median: float
    kurtosis: float

    @property
    def ratio(self) -> float:
        """The largest over the median channel."""
        return self.largest / self.median if self.median else float("inf")

    def to_json(self) -> dict[str, Any]:
        return {
            "largest": self.largest,
            "channel": self.channel,
            "median": self.median,
            "ratio": self.ratio if np.isfinite(self.ratio) else None,
            "kurtosis": self.kurtosis if np.isfinite(self.kurtosis) else None,
        }


@dataclass(frozen=True)
class NormRanges:
    """A norm, the channels of the stream that it ``reads``, and of what it ``gives``."""

    site: Site
    reads: ChannelRanges
    gives: ChannelRanges

    def to_json(self) -> dict[str, Any]:
        site = self.site
        return {
            "site": site.name,
            "role": site.role,
            "tower": site.tower,
            "reads": self.reads.to_json(),
            "gives": self.gives.to_json(),
        }


@dataclass(frozen=True, repr=False)
class Ranges(Shown):
    """How evenly the channels around the norms of a model are filled.

    Attributes:
        model: its name.
        samples: how many samples were run.
        norms: those over one axis, in the order of execution.

    Examples:
        >>> found = ranges(model, data="images")
        >>> max(found.norms, key=lambda norm: norm.gives.ratio).site.name
    """

    view: ClassVar[str] = "normswap.report.ranges:ranges_view"

    model: str
    samples: int
    norms: list[NormRanges]

    def to_json(self) -> dict[str, Any]:
        """Keys: ``samples`` and ``norms``."""
        return {"samples": self.samples, "norms": [norm.to_json() for norm in self.norms]}


def ranges(
    model: Model, *, data: Any, samples: int | None = None, progress: Progress | None = None
) -> Ranges:
    """How evenly the channels of what norms read and give are filled, on real data.

    Args:
        model: of ``load``.
        data: whatever ``load_data`` takes, such as a folder of images; inputs that it lacks are
            drawn at random.
        samples: use that many of ``data``, drawn at random (always the same).
        progress: ``progress(done, total, what)`` is called before each batch.

    Returns:
        For each norm over one axis the largest magnitude over the median channel's, and the
        kurtosis, of its input and of its output.

    Raises:
        NormswapError: data that is missing or unfit, and a model that does not run.

    Examples:
        >>> found = ranges(load("vit.onnx"), data="images")
        >>> found.norms[0].reads.ratio
    """
    if data is None:
        raise NormswapError("ranges: needs data; give it what load_data takes")
    given = data if isinstance(data, Data) else load_data(data, model, samples, progress=progress)
    with model.at_fault():
        batches, _ = batches_of(model, given)
        return measured(model, batches, progress)


def measured(
    model: Model, batches: Sequence[Mapping[str, Array]], progress: Progress | None = None
) -> Ranges:
    """``ranges`` on batches of feeds."""
    graph = model.graph
    sites = [site for site in model.sites if len(site.axes) == 1]
    values = [graph.value(name) for site in sites for name in (site.input, site.output)]
    distinct = list(dict.fromkeys(values))
    run = graph.slice(graph.inputs, distinct) if distinct else None
    axes = {graph.value(n): s.axes[0] for s in sites for n in (s.input, s.output)}
    sums = {value: _Sums() for value in distinct}
    for done, feeds in enumerate(batches):
        if progress:
            progress(done, len(batches), "measuring")
        arrays = run([feeds[spec.name] for spec in model.inputs]) if run else []
        for value, array in zip(distinct, arrays, strict=True):
            sums[value].add(np.moveaxis(np.asarray(array, np.float64), axes[value], -1))
    if progress:
        progress(len(batches), len(batches), "done")
    found = {value: own.result() for value, own in sums.items()}
    norms = [
        NormRanges(site, found[graph.value(site.input)], found[graph.value(site.output)])
        for site in sites
    ]
    return Ranges(model.name, sum(len(next(iter(f.values()))) for f in batches), norms)


class _Sums:
    """Of the elements of a value: their powers, and each channel's largest magnitude."""

    def __init__(self) -> None:
        self._count = 0
        self._about = 0.0  # near the mean: fourth powers of large numbers keep no digits of others
        self._powers = np.zeros(5)
        self._largest = np.zeros(1)

    def add(self, array: Array) -> None:
        """``array``: [..., C]."""
        rows = array.reshape(-1, array.shape[-1])
        self._largest = np.maximum(self._largest, np.abs(rows).max(0, initial=0.0))
        if not self._count and rows.size:
            self._about = float(rows.mean())
        self._count += rows.size
        rows = rows - self._about
        self._powers += [float(np.sum(rows**power)) for power in range(5)]

    def result(self) -> ChannelRanges:
        _, m, square, cube, fourth = self._powers / max(self._count, 1)
        variance = square - m**2
        about_mean = fourth - 4 * m * cube + 6 * m**2 * square - 3 * m**4
        kurtosis = about_mean / variance**2 if variance > 1e-12 * square else float("nan")
        channel = int(np.argmax(self._largest))
        median = float(np.median(self._largest))
        return ChannelRanges(float(self._largest[channel]), channel, median, float(kurtosis))
