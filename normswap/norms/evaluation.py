"""Evaluates a candidate region in float64, on probes of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array, Graph, Runner, Value
from normswap.norms.constants import known_constant
from normswap.norms.formula import Norm, Statistics
from normswap.norms.regions import Region

WHOLE = 1 << 24
"""The most elements (128 MB) that a value may have to be evaluated as a whole: a proof holds ten
such arrays."""
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


OnProbes = Callable[[Sequence[Array]], list[Array | None]]
"""Exits on some probes, from the numbers of constants; see ``RegionRunner.on``."""


class RegionRunner:
    """A region as a function of its entry, in float64.

    Args:
        graph, region: what to evaluate.
        constants: other numbers for some of its constants (see ``rounded_averages``, and ``on``).

    Attributes:
        problem: why the region cannot be evaluated, or failed when it was; '' if nothing is wrong.
    """

    def __init__(
        self, graph: Graph, region: Region, constants: dict[Value, Array] | None = None
    ) -> None:
        self.region, self._graph = region, graph
        constants = constants or {}
        inputs = [region.entry, *region.sizes, *constants]
        self._leaves = tuple(constants)
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

    def __call__(self, probes: Array) -> list[Array | None]:
        """Each exit for each of ``probes`` [n, *shape]; None for one of another shape or dtype.

        Where the region fails every exit is None and ``problem`` says why.
        """

        def run(at: int) -> list[Array] | None:
            results = self._results(probes[at : at + 1])
            return None if results is None else results[0]

        return _stacked(run, probes.shape, len(self.region.exits))

    def on(self, probes: Array) -> OnProbes | None:
        """The same on these probes, for any numbers of the constants that the region was made with:
        what these do not enter is computed once. None where the region fails."""
        inputs, entered = [self.region.entry, *self.region.sizes], set(self._leaves)
        behind = []
        for node in self.region.nodes:
            if not entered.isdisjoint(node.inputs):
                entered.update(node.outputs)
                behind.append(node)
        reads = [*(v for node in behind for v in node.inputs if v is not None), *self.region.exits]
        computed = (v for v in reads if v not in entered and not v.is_constant)
        fixed = list(dict.fromkeys(v for v in computed if v not in inputs))
        try:
            first = self._graph.slice(inputs, fixed, np.float64)
            rest = [*inputs, *fixed, *self._leaves]
            run = self._graph.slice(rest, self.region.exits, np.float64)
            with np.errstate(all="ignore"):
                given = [[probe, *self._sizes] for probe in probes]
                given = [[*arrays, *first(arrays)] for arrays in given]
        except Exception as error:  # an operator may raise anything on shapes it does not take
            self.problem = first_line(error)
            return None

        def exits(constants: Sequence[Array]) -> list[Array | None]:
            count = len(self.region.exits)
            try:
                with np.errstate(all="ignore"):
                    return _stacked(lambda at: run([*given[at], *constants]), probes.shape, count)
            except Exception as error:  # as above
                self.problem = first_line(error)
                return [None] * count

        return exits

    def largest(self, probes: Array) -> list[float] | None:
        """The largest magnitude that each exit reaches, whatever its shape; None where it fails."""
        results = self._results(probes)
        if results is None:
            return None
        return [
            max(float(np.abs(y).max(initial=0)) for y in ys) for ys in zip(*results, strict=True)
        ]

    def _results(self, probes: Array) -> list[list[Array]] | None:
        if self._run is None:
            return None
        try:
            with np.errstate(all="ignore"):
                return [self._run([probe, *self._sizes, *self._constants]) for probe in probes]
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


def _stacked(
    run: Callable[[int], list[Array] | None], shape: tuple[int, ...], count: int
) -> list[Array | None]:
    """``count`` exits for all probes [n, ...], of which ``run`` gives those of one, or None for all
    where it fails; None for an exit of another shape. A single array is not copied."""
    found: dict[int, Array] = {}
    for at in range(shape[0]):
        exits = run(at)
        if exits is None:
            return [None] * count
        fitting = [
            i for i, y in enumerate(exits) if y.shape == shape[1:] and (not at or i in found)
        ]
        if not fitting:
            return [None] * count  # the others may be much larger than the probes
        if shape[0] == 1:
            found = {i: exits[i][None].astype(np.float64, copy=False) for i in fitting}
            break
        found = {i: found[i] if at else np.empty(shape) for i in fitting}
        for index, array in found.items():
            array[at] = exits[index]
    return [found.get(index) for index in range(count)]


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

    Random numbers, the same at every call; the exits are evaluated when asked for. Large inputs are
    made each time that they are read, so that only what is computed of them is held.

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
        shape: of one probe.
        nudged_at: the index of the element that 'nudged' changes.
    """

    def __init__(self, run: RegionRunner, shape: tuple[int, ...], count: int = 0) -> None:
        self._run = run
        self.shape = shape
        self._count = count or max(1, min(repeats(shape), WHOLE // max(1, math.prod(shape))))
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

        def large() -> Array:
            x = unit + 3 * means
            x *= _LARGE
            return x

        def outliers() -> Array:
            x = plain()
            x[..., shape[-1] // 3] += _OUTLIER
            x[..., -1] -= 0.5 * _OUTLIER
            return x

        self.inputs = _Made(
            plain=plain,
            nudged=nudged,
            large=large,
            tiny=lambda: _TINY * unit,
            vanishing=lambda: _VANISHING * unit,
            outliers=outliers,
        )
        self._outputs: dict[str, list[Array | None]] = {}
        self._reached: list[list[Array] | None] = []

    def to_fit(self, statistics: Statistics, over: tuple[int, ...]) -> Probes:
        """As many such probes as determine a weight and a bias per position of the axes ``over``.

        A single row of statistics does not: a line goes through any two of its points. Not more
        probes than the bound on memory allows, and of large values two rows where every position
        has more: there the other sorts of probes tell the rows apart.
        """
        rows = self._rows({*statistics.axes, *over})
        count = -(-_LINE // rows)
        if math.prod(self.shape) > _ELEMENTS and self._rows(over) >= _LINE:
            count = -(-2 // rows)
        if count <= self._count or count * math.prod(self.shape) > WHOLE:
            return self
        if count not in self._more:
            self._more[count] = Probes(self._run, self.shape, count)
        if self.are_large:
            self._outputs.clear()  # it has more of the same
        return self._more[count]

    def rows(self, taken: Collection[int]) -> int:
        """How many rows there are of each sort along the axes ``taken``."""
        return self._count * self._rows(taken)

    def _rows(self, taken: Collection[int]) -> int:
        return math.prod(size for axis, size in enumerate(self.shape) if axis not in taken)

    def of(self, name: str, index: int) -> Array | None:
        """Exit ``index`` on the probes ``name`` [count, *shape]; None if it is of another shape."""
        if name not in self._outputs:
            self._outputs[name] = self._run(self.inputs[name])
        return self._outputs[name][index]

    def reached(self, index: int) -> list[Array] | None:
        """Along each axis the positions at which one element of the input changes exit ``index``;
        None if that is of another shape."""
        if not self._reached:
            count = len(self._run.region.exits)
            pairs = [(self.of("plain", i), self.of("nudged", i)) for i in range(count)]
            self._reached = [
                None if plain is None or nudged is None else touched(plain != nudged)
                for plain, nudged in pairs
            ]
            if self.are_large:
                self._outputs.pop("nudged")
        return self._reached[index]

    def reach(self, index: int) -> set[int]:
        """The axes along which one element of the input changes exit ``index``."""
        positions = self.reached(index) or ()
        return {axis for axis, touched_at in enumerate(positions) if len(touched_at) > 1}

    def critical(self, epsilon: float, statistics: Statistics) -> str:
        """The name of a probe whose rows have a variance near ``epsilon``, one of several zero."""
        several = self.rows(statistics.axes) > 1
        unit = self._unit  # not ``self``, which is to be freed when it is done with

        def critical() -> Array:
            x = np.sqrt(epsilon) * unit
            if several:
                axes = range(x.ndim - 1)
                row = (slice(None) if a in statistics.axes else 0 for a in axes)
                x[(0, *row)] = 0
            return x

        name = f"{epsilon:.1e} over {statistics}"
        self.inputs.makers[name] = critical
        return name

    @property
    def are_large(self) -> bool:
        return self._unit.size > _ELEMENTS


def every_sort(shape: tuple[int, ...], norm: Norm) -> Array | None:
    """Probes [n, *shape] with rows of every sort that ``Probes`` has, in turn: as few as have one
    row of each for the statistics of ``norm``. None where these are beyond the bound."""
    axes = range(len(shape))
    free = [axis for axis in axes if axis not in norm.statistics.axes]
    rows = math.prod(shape[axis] for axis in free)
    critical = math.sqrt(norm.epsilon) if norm.epsilon else _VANISHING
    scales = np.array([1.0, critical, _LARGE, 1.0, _TINY])
    count = -(-len(scales) // rows)
    if count * math.prod(shape) > WHOLE:
        return None
    sort = np.arange(count * rows).reshape(count, *(shape[a] if a in free else 1 for a in axes))
    sort = sort % len(scales)
    random = np.random.default_rng(2)
    x = random.standard_normal((count, *shape))
    x += random.standard_normal(sort.shape) * np.array([0.5, 0, 3, 0.5, 0])[sort]
    x *= scales[sort]
    outlying = np.broadcast_to(sort == _OUTLYING, x.shape)[..., shape[-1] // 3]
    x[..., shape[-1] // 3] += np.where(outlying, _OUTLIER, 0)
    return x


class _Made(dict[str, Array]):
    """Arrays that are made when they are asked for: large ones every time."""

    def __init__(self, **makers: Callable[[], Array]) -> None:
        super().__init__()
        self.makers = makers

    def __missing__(self, name: str) -> Array:
        made = self.makers[name]()
        if made.size <= _ELEMENTS:
            self[name] = made
        return made


def touched(changed: Array) -> list[Array]:
    """Along each axis the positions at which ``changed`` [probes, *shape] holds."""
    mask = changed.any(axis=0)
    rest = [tuple(a for a in range(mask.ndim) if a != axis) for axis in range(mask.ndim)]
    return [np.flatnonzero(np.any(mask, axis=others)) for others in rest]
