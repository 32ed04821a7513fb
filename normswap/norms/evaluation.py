"""Evaluates a candidate region in float64, on probes of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array, Graph, Runner, Value
from normswap.norms.constants import known_constant
from normswap.norms.formula import Norm, Statistics
from normswap.norms.regions import Region

WHOLE = 20_000_000
"""The most elements (160 MB) that a value may have to be evaluated as a whole."""
_GROWTH = 16  # by which a value may be larger than the entry of its region
_ELEMENTS = 400_000  # of a probe; larger values are cut along their leading axes to fit
_ROWS = 8  # to fit with at least: a value with fewer is evaluated several times
_CUT = (3, 5, 4)  # sizes of the axes that a small probe cuts, in turn
_OTHER_BATCH = 2  # the size of the first axis where it is the first of those already
_ROUNDED = (np.dtype(np.float32), np.dtype(np.float16))
_LARGE, _TINY, _VANISHING = 1e5, 1e-9, 1e-30
_OUTLIER = 1e2
_OUTLYING = 3  # the place of outliers among the sorts of rows
_NUDGE = 3.0
_LINE = 3  # rows at least to fit a line to: one goes through any two


class RegionRunner:
    """A region as a function of its entry, in float64.

    Args:
        graph, region: what to evaluate.
        constants: other numbers for some of its constants (see ``rounded_averages``), in calls as
            well.

    Attributes:
        problem: why the region cannot be evaluated, or failed when it was; '' if nothing is wrong.
    """

    def __init__(
        self, graph: Graph, region: Region, constants: dict[Value, Array] | None = None
    ) -> None:
        self.region = region
        constants = constants or {}
        inputs = [region.entry, *region.sizes, *constants]
        self.problem = ""
        self._sizes: list[Array] = []
        self._constants: list[Array] = []
        self._run: Runner | None = None
        try:
            _check_growth(region)
            self._sizes, self._constants = _known_sizes(graph, region), list(constants.values())
            self._run = graph.slice(inputs, region.exits, np.float64)
        except Exception as error:  # a file may hold any operator, and damage any attribute
            self.problem = first_line(error)

    def __call__(
        self, probes: Array, constants: Sequence[Array] | None = None
    ) -> list[Array | None]:
        """Each exit for each of ``probes`` [n, *shape]; None for one of another shape or dtype.

        ``constants``: for those that the region was made with. Where the region fails every exit is
        None and ``problem`` says why.
        """
        results = self._results(probes, self._constants if constants is None else constants)
        if results is None:
            return [None] * len(self.region.exits)
        stacked = (_stacked(exits) for exits in zip(*results, strict=True))
        return [
            s.astype(np.float64, copy=False) if s.shape == probes.shape else None for s in stacked
        ]

    def largest(self, probes: Array) -> list[float] | None:
        """The largest magnitude that each exit reaches, whatever its shape; None where it fails."""
        results = self._results(probes, self._constants)
        if results is None:
            return None
        return [
            max(float(np.abs(y).max(initial=0)) for y in ys) for ys in zip(*results, strict=True)
        ]

    def _results(self, probes: Array, constants: Sequence[Array]) -> list[list[Array]] | None:
        if self._run is None:
            return None
        try:
            with np.errstate(all="ignore"):
                return [self._run([probe, *self._sizes, *constants]) for probe in probes]
        except Exception as error:  # an operator may raise anything on shapes it does not take
            self.problem = first_line(error)
            return None

    @property
    def is_known(self) -> bool:
        """Whether there is an evaluation for every operator of the region."""
        return self._run is not None

    @property
    def is_rowwise(self) -> bool:
        return all(node.operator.rowwise for node in self.region.nodes)


def _stacked(arrays: Sequence[Array]) -> Array:
    """As ``np.stack``; a single array, which may be large, is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _check_growth(region: Region) -> None:
    """Raises NormswapError for a region that makes much more of its entry."""
    limit = max(WHOLE, _GROWTH * math.prod(region.entry.shape or ()))
    for value in (v for node in region.nodes for v in node.outputs):
        if value.shape is not None and math.prod(value.shape) > limit:
            raise NormswapError(f"'{value.name}' has more than {limit:,} elements")


def probe_shapes(region: Region) -> Iterator[tuple[int, ...]]:
    """The shapes of the entry to try in turn: few rows but the last axis whole; axis 1 whole; all
    of it, as far as the bounds allow.

    A region that reads sizes from elsewhere accepts only the last.
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
    """How many probes of ``shape`` have enough rows, along the longest axis, to fit constants."""
    return max(1, -(-_ROWS // max(1, math.prod(shape) // max(shape))))


def _cut(shape: tuple[int, ...], keep: Sequence[int]) -> tuple[int, ...]:
    sizes, cuts = list(shape), iter(_CUT * len(shape))
    for axis, size in enumerate(shape):
        if axis not in keep and (size > 1 or axis == 0):
            cut = next(cuts)
            sizes[axis] = min(size, cut) if axis else _OTHER_BATCH if size == cut else cut
    return tuple(sizes)


def rounded_averages(graph: Graph, region: Region) -> dict[Value, Array]:
    """The constants of a region that are 1 / n in single or half precision, as exact numbers.

    A sum times a rounded 1 / n is meant to be a mean, and differs from it by less than the
    rounding of its own precision.
    """
    counts = _counts(region.entry.shape or ())
    exact: dict[Value, Array] = {}
    for node in region.nodes:
        for value in node.inputs:
            if value is None or not value.is_constant or value.dtype not in _ROUNDED:
                continue
            array = known_constant(graph, value)
            if array is None or not array.size or array.size > max(counts, default=0):
                continue
            number = float(array.flat[0])
            n = next((n for n in counts if float(value.dtype.type(1 / n)) == number), None)
            if n is not None and 1 / n != number and bool(np.all(array == array.flat[0])):
                exact[value] = np.full(array.shape, 1 / n)
    return exact


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


class Probes:
    """Several probes for the entry of a region, and what its exits are on them.

    Random numbers, the same at every call; the exits are evaluated when asked for.

    Args:
        run: the region.
        shape: of one probe.
        count: how many probes of each sort; by default as many as a norm over the longest axis
            needs.

    Attributes:
        inputs: by name arrays [count, *shape]. 'plain': of unit scale, with row means. 'nudged':
            the same but for one element of each. 'large': of scale 1e5, with row means of three
            times that. 'tiny': of scale 1e-9. 'vanishing': of scale 1e-30. 'outliers': plain, with
            two elements of 1e2 at fixed places.
        nudged_at: the index of the element that 'nudged' changes.
    """

    def __init__(self, run: RegionRunner, shape: tuple[int, ...], count: int = 0) -> None:
        self._run = run
        self._shape = shape
        self._count = count or repeats(shape)
        self._more: dict[int, Probes] = {}
        random = np.random.default_rng(0)
        unit = self._unit = random.standard_normal((self._count, *shape))
        means = random.standard_normal((*unit.shape[:-1], 1))
        self.nudged_at = tuple(size // 2 for size in shape)
        at: tuple[Any, ...] = (slice(None), *self.nudged_at)

        def plain() -> Array:
            return unit + 0.5 * means

        def nudged() -> Array:
            x = plain()
            x[at] += _NUDGE
            return x

        def outliers() -> Array:
            x = plain()
            x[..., shape[-1] // 3] += _OUTLIER
            x[..., -1] -= 0.5 * _OUTLIER
            return x

        self.inputs: dict[str, Array] = _Made(
            plain=plain,
            nudged=nudged,
            large=lambda: _LARGE * (unit + 3 * means),
            tiny=lambda: _TINY * unit,
            vanishing=lambda: _VANISHING * unit,
            outliers=outliers,
        )
        self._outputs: dict[str, list[Array | None]] = {}

    def to_fit(self, statistics: Statistics, over: tuple[int, ...]) -> Probes:
        """As many such probes as determine a weight and a bias per position of the axes ``over``.

        A single row of statistics does not: a line goes through any two of its points. Not more
        probes than the bound on memory allows, and of large values two rows where every position
        has more: there the other sorts of probes tell the rows apart.
        """
        rows = self._rows({*statistics.axes, *over})
        count = -(-_LINE // rows)
        if math.prod(self._shape) > _ELEMENTS and self._rows(set(over)) >= _LINE:
            count = -(-2 // rows)
        if count <= self._count or count * math.prod(self._shape) > WHOLE:
            return self
        if count not in self._more:
            self._more[count] = Probes(self._run, self._shape, count)
        return self._more[count]

    def _rows(self, taken: set[int]) -> int:
        """How many rows a probe has along the axes ``taken``."""
        return math.prod(size for axis, size in enumerate(self._shape) if axis not in taken)

    def of(self, name: str, index: int) -> Array | None:
        """Exit ``index`` on the probes ``name`` [count, *shape]; None if it is of another shape."""
        if name not in self._outputs:
            self._outputs[name] = self._run(self.inputs[name])
        return self._outputs[name][index]

    def reach(self, index: int) -> set[int] | None:
        """The axes along which one element of the input changes exit ``index``."""
        plain, nudged = self.of("plain", index), self.of("nudged", index)
        if plain is None or nudged is None:
            return None
        return {axis for axis, t in enumerate(touched(plain != nudged)) if len(t) > 1}

    def critical(self, epsilon: float, statistics: Statistics) -> str:
        """The name of a probe whose rows have a variance near ``epsilon``, one of them zero."""
        name = f"{epsilon:.1e} over {statistics}"
        if name not in self.inputs:
            x = np.sqrt(epsilon) * self._unit
            axes = range(x.ndim - 1)
            row = (slice(None) if a in statistics.axes else 0 for a in axes)
            x[(0, *row)] = 0
            self.inputs[name] = x
        return name


def every_sort(shape: tuple[int, ...], norm: Norm) -> Array:
    """Probes [n, *shape] with rows of every sort that ``Probes`` has, in turn: as few as have one
    row of each for the statistics of ``norm``."""
    axes = range(len(shape))
    free = [axis for axis in axes if axis not in norm.statistics.axes]
    rows = math.prod(shape[axis] for axis in free)
    critical = math.sqrt(norm.epsilon) if norm.epsilon else _VANISHING
    scales = np.array([1.0, critical, _LARGE, 1.0, _TINY])
    count = -(-len(scales) // rows)
    sort = np.arange(count * rows).reshape(count, *(shape[a] if a in free else 1 for a in axes))
    sort = sort % len(scales)
    random = np.random.default_rng(2)
    unit = random.standard_normal((count, *shape))
    means = random.standard_normal(sort.shape) * np.array([0.5, 0, 3, 0.5, 0])[sort]
    x = scales[sort] * (unit + means)
    outlying = np.broadcast_to(sort == _OUTLYING, x.shape)[..., shape[-1] // 3]
    x[..., shape[-1] // 3] += np.where(outlying, _OUTLIER, 0)
    return np.asarray(x)


class _Made(dict[str, Array]):
    """Arrays that are made when they are first asked for."""

    def __init__(self, **makers: Callable[[], Array]) -> None:
        super().__init__()
        self._makers = makers

    def __missing__(self, name: str) -> Array:
        self[name] = self._makers[name]()
        return self[name]


def touched(changed: Array) -> list[Array]:
    """Along each axis the positions at which ``changed`` [probes, *shape] holds."""
    mask = changed.any(axis=0)
    rest = [tuple(a for a in range(mask.ndim) if a != axis) for axis in range(mask.ndim)]
    return [np.flatnonzero(np.any(mask, axis=others)) for others in rest]
