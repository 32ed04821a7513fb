"""Evaluates a candidate region in float64 on probes of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from normswap.graph.graph import Array, Graph, Runner, Value
from normswap.norms.regions import Region

_ELEMENTS = 400_000  # of a probe; larger values are cut along their leading axes to fit
WHOLE = 20_000_000  # elements at most (160 MB) of the check of the whole value
_ROWS = 8  # to fit with at least: a value with fewer is evaluated several times
_CUT = (3, 5, 4)  # sizes of the axes that a small probe cuts, in turn
_ROUNDED = (np.dtype(np.float32), np.dtype(np.float16))


class RegionRunner:
    """A region as a function of its entry.

    ``averages``: other numbers for some of its constants (see ``rounded_averages``).
    Raises NormswapError or ValueError for an operator that cannot be evaluated in float64.
    """

    def __init__(
        self, graph: Graph, region: Region, averages: dict[Value, Array] | None = None
    ) -> None:
        self.region = region
        averages = averages or {}
        self._fixed = [*_known_sizes(graph, region), *averages.values()]
        inputs = [region.entry, *region.sizes, *averages]
        self._run: Runner = graph.slice(inputs, region.exits, np.float64)
        self.problem = ""

    def __call__(self, probes: Array) -> list[Array | None]:
        """Each exit for each of ``probes`` [n, *shape]; None for one of another shape or dtype.

        Where the region fails every exit is None and ``problem`` says why.
        """
        results = self._results(probes)
        if results is None:
            return [None] * len(self.region.exits)
        stacked = (np.stack(exits) for exits in zip(*results, strict=True))
        return [s.astype(np.float64) if s.shape == probes.shape else None for s in stacked]

    def largest(self, probes: Array) -> list[float] | None:
        """The largest magnitude that each exit reaches, whatever its shape; None where it fails."""
        results = self._results(probes)
        if results is None:
            return None
        return [
            max(float(np.abs(y).max(initial=0)) for y in ys) for ys in zip(*results, strict=True)
        ]

    def _results(self, probes: Array) -> list[list[Array]] | None:
        try:
            with np.errstate(all="ignore"):
                return [self._run([probe, *self._fixed]) for probe in probes]
        except Exception as error:  # an operator may raise anything on shapes it does not take
            self.problem = str(error).strip().splitlines()[0] if str(error).strip() else "fails"
            return None

    @property
    def is_rowwise(self) -> bool:
        return all(node.operator.rowwise for node in self.region.nodes)


def probe_shapes(region: Region) -> Iterator[tuple[int, ...]]:
    """Shapes to try in turn: the last axis whole and few rows, axis 1 whole, all of it.

    A region that holds sizes fast accepts only the last.
    """
    shape = region.entry.shape or ()
    whole = bounded(shape, _ELEMENTS)
    tried = [_cut(shape, (len(shape) - 1,)), _cut(shape, (1,)), whole, bounded(shape, WHOLE)]
    if region.sizes:
        tried = tried[-1:]
    yield from (s for s in dict.fromkeys(tried) if math.prod(s) <= WHOLE)


def bounded(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """``shape`` with its leading axes cut until it has at most ``limit`` elements."""
    sizes = list(shape)
    while math.prod(sizes) > limit and max(sizes[:-1], default=1) > 1:
        largest = sizes.index(max(sizes[:-1]))
        sizes[largest] = -(-sizes[largest] // 2)
    return tuple(sizes)


def repeats(shape: Sequence[int]) -> int:
    """How many probes of ``shape`` make enough rows to fit constants with."""
    return max(1, -(-_ROWS // max(1, math.prod(shape) // max(shape))))


def _cut(shape: tuple[int, ...], keep: Sequence[int]) -> tuple[int, ...]:
    sizes, cuts = list(shape), iter(_CUT * len(shape))
    for axis, size in enumerate(shape):
        if axis not in keep and (size > 1 or axis == 0):
            sizes[axis] = next(cuts) if axis == 0 else min(size, next(cuts))
    return tuple(sizes)


def rounded_averages(graph: Graph, region: Region) -> dict[Value, Array]:
    """Constants that are 1 / n in single or half precision, as exact ones.

    A mean as a sum times a rounded 1 / n is meant as a mean, and differs from it by less than its
    own rounding.
    """
    counts = _counts(region.entry.shape or ())
    found: dict[Value, Array] = {}
    for node in region.nodes:
        for value in node.inputs:
            if value is None or not value.is_constant or value.dtype not in _ROUNDED:
                continue
            array = graph.constant(value)
            if array is None or not array.size or array.size > max(counts, default=0):
                continue
            number = float(array.flat[0])
            n = next((n for n in counts if float(value.dtype.type(1 / n)) == number), None)
            if n is not None and 1 / n != number and bool(np.all(array == array.flat[0])):
                found[value] = np.full(array.shape, 1 / n)
    return found


def _counts(shape: tuple[int, ...]) -> list[int]:
    """How many elements a norm over the last or the first axes of a row may average."""
    rank = len(shape)
    spans = [shape[i:j] for i in range(rank) for j in range(i + 1, rank + 1)]
    sizes = {math.prod(span) for span in spans}
    return sorted({n for size in sizes for n in (size, size - 1) if n > 1})


def _known_sizes(graph: Graph, region: Region) -> list[Array]:
    """What the Shape nodes outside the region give at the example inputs' sizes."""
    fixed = []
    for value in region.sizes:
        node = value.producer
        shape = node.data_input().shape if node is not None else None
        if node is None or shape is None:
            raise ValueError(f"the shape that '{value.name}' holds is unknown")
        axis = node.attributes.get("axis")
        if axis is None:
            start, end = node.attributes.get("start", 0), node.attributes.get("end")
            fixed.append(np.asarray(shape[start:end], np.int64))
        else:
            fixed.append(np.asarray(shape[axis], np.int64))
    return fixed
