"""What writes to the residual stream is fitted to the original's stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.fit.covariance import joint_moments
from normswap.fit.ridge import RidgeFits
from normswap.fit.sweep import Readings, Stop
from normswap.fit.tokens import Layout, Masks, Rows, rows_of
from normswap.graph.graph import Array, Graph, Node, Runner, Value
from normswap.graph.linear import Linear, linear_writing
from normswap.norms.structure import Residual, is_attention, is_product, residuals, towers
from normswap.passes.algebra.rounding import rounded
from normswap.passes.base import Refusal
from normswap.passes.calibrated import Fitted, Plan, as_read

_PATH = 64  # operators, at most, between a writer and the sum


def writer_stops(plan: Plan, sites: Sequence[Fitted]) -> tuple[list[Stop], list[str]]:
    """The refits of the linear layers that write to the stream behind the first of ``sites``, and
    notes on those that cannot be refitted."""
    graph = plan.graph
    tower = towers(graph)
    changed = graph.descendants(graph.value(f.site.output) for f in sites)
    masks = {f.site.tower: f.masks for f in reversed(sites)}  # the first's: not [EOS] alone
    stops: list[Stop] = []
    fits: dict[tuple[int, int], RidgeFits] = defaultdict(RidgeFits)
    moved = []
    for residual in residuals(graph):
        if residual.branch not in changed:
            continue
        writer = _writer(graph, residual)
        if writer is None:
            moved.append(residual.add.output.name)
        else:
            mask = masks.get(tower.get(residual.branch, ""))
            stops.append(_Refit(plan, writer, mask, fits[writer.linear.sizes]))
    if not moved:
        return stops, []
    kept = f"{len(moved)} writers of the stream keep their weights, since what they write is moved"
    return stops, [f"{kept} or changed before it is added: up to '{moved[0]}' and the like"]


@dataclass(frozen=True)
class _Writer:
    """total = skip + path(W hidden + b); ``path`` moves values and may scale each channel. It
    computes in float64, and may take sizes from the model's ``inputs``."""

    linear: Linear
    path: Runner
    is_moved: bool
    inputs: tuple[Value, ...]
    skip: Value
    total: Value


def _writer(graph: Graph, residual: Residual) -> _Writer | None:
    """The linear layer at the end of a branch, if what it writes is only moved and scaled."""
    value = residual.branch
    skip = next(v for v in residual.add.dynamic_inputs() if v is not value)
    while True:
        linear = linear_writing(graph, value)
        if linear is not None:
            break
        node = value.producer
        if node is None or not _keeps_values(node):
            return None
        value = next(v for v in node.inputs if v is not None and not v.is_constant)
    nodes = graph.ancestors([residual.branch], stop=[linear.output])
    if len(nodes) > _PATH or any(is_product(node) or is_attention(node) for node in nodes):
        return None  # where things move to depends on what is not computed again for that
    inputs = tuple(graph.sources([residual.branch], stop=[linear.output]))
    path = graph.slice([linear.output, *inputs], [residual.branch], np.float64)
    is_moved = any(node.operator.move != "copy" for node in nodes)
    return _Writer(linear, path, is_moved, inputs, skip, residual.add.output)


def _keeps_values(node: Node) -> bool:
    """Whether it moves values, or scales them."""
    operator = node.operator
    return operator.passes_through or operator.move in ("pad", "roll") or node.op == "Mul"


@dataclass(frozen=True)
class _Arrival:
    """Where the rows that a linear layer writes arrive in the stream.

    ``axis``: the stream's channel axis. ``source``: the number of the row that each element of the
    stream comes from, with a size of 1 at ``axis``. ``scale``: of each channel [C].
    """

    axis: int
    source: Array
    scale: Array


def _arrival(writer: _Writer, hidden: Array, inputs: Sequence[Array]) -> _Arrival | None:
    """For a batch of what the layer reads; None where channels do not stay channels."""
    channels, axis = len(writer.linear.weight), writer.linear.output_axis
    sizes = [size for a, size in enumerate(hidden.shape) if a != writer.linear.axis]
    rows = np.expand_dims(np.arange(np.prod(sizes), dtype=np.intp).reshape(sizes), axis)
    if not writer.is_moved:
        return _Arrival(axis, rows, np.ones(channels))
    shape = (*sizes[:axis], channels, *sizes[axis:])
    numbers = np.arange(channels, dtype=np.float64).reshape(-1, *[1] * (len(shape) - axis - 1))
    # What is only moved and scaled shows by its numbers where it came from.
    factor, row, channel = (
        writer.path([np.array(np.broadcast_to(a, shape), np.float64), *inputs])[0]
        for a in (np.ones(()), rows + 1, numbers + 1)
    )
    whole = np.where(factor == 0, 1, factor)
    row, channel = np.rint(row / whole) - 1, np.rint(channel / whole) - 1
    for found in (a for a, size in enumerate(factor.shape) if size == channels):
        scale = np.moveaxis(factor, found, -1).reshape(-1, channels)
        ordered = np.moveaxis(channel, found, -1)
        alive = scale[0] != 0
        if (scale == scale[0]).all() and (ordered[..., alive] == np.arange(channels)[alive]).all():
            first = int(np.argmax(alive))
            return _Arrival(found, row.take([first], found).astype(np.intp), scale[0])
    return None


class _Refit(Stop):
    """W and b such that the stream comes as near to the original's as they can make it.

    With t = (original's total - skip), each row of it beside the row of h that it comes from, the
    ridge regression of t on h gives scale * W and scale * b; it shrinks towards the old scale * W.
    ``scale`` is LayerScale, or ones.
    """

    def __init__(self, plan: Plan, writer: _Writer, masks: Masks | None, fits: RidgeFits) -> None:
        self.reads = (writer.linear.input, writer.skip, *writer.inputs)
        self.targets = (plan.original.value(writer.total.name),)
        self._plan, self._writer, self._masks, self._fits = plan, writer, masks, fits

    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        linear = self._writer.linear
        size = linear.weight.shape
        hidden, _, *inputs, _ = next(iter(readings))
        first = _arrival(self._writer, hidden, inputs)
        if first is None or not first.scale.any():
            self._plan.notes.append(f"'{linear.name}' keeps its weight: it is not in place")
            return {}
        scale = first.scale

        def parts() -> Iterator[tuple[Array, Array, Array]]:
            for read, skips, totals, held_out in self._parts(readings):
                yield read, totals.astype(np.float64) - skips, held_out

        def held() -> Iterator[tuple[Array, Array]]:
            for read, skips, totals, out in self._parts(readings):
                yield read[out], totals[out].astype(np.float64) - skips[out]

        train = joint_moments(parts, size[1], size[0])
        fit = self._fits.fit(train, held, (scale[:, None] * linear.weight).T)
        alive = scale != 0
        divided = np.where(alive, scale, 1.0)
        weight = np.where(alive[:, None], fit.weight.T / divided[:, None], linear.weight)
        old_bias = np.zeros(size[0]) if linear.bias is None else linear.bias
        arrays = linear.as_stored(weight, np.where(alive, fit.bias / divided, old_bias))
        try:
            for array, dtype in zip(arrays, linear.dtypes, strict=True):
                rounded(np.asarray(array), dtype, f"'{linear.name}'")
        except Refusal as refusal:
            self._plan.notes.append(f"'{linear.name}' keeps its weight: {refusal}")
            return {}
        linear.put(*arrays)
        return {}

    def _parts(self, readings: Readings) -> Iterator[tuple[Array, Array, Array, Array]]:
        """By batch the rows of what the layer reads and of where they arrive: of the skip, of the
        original's total; and which are held out."""
        linear = self._writer.linear
        readings = as_read(readings, self._plan.form)
        for number, (hidden, skip, *inputs, total) in enumerate(readings):
            arrival = _arrival(self._writer, hidden, inputs)
            if arrival is None:  # though it is in place in the first batch
                raise NormswapError(
                    f"'{linear.name}' cannot be refitted to a batch of {len(hidden)} rows; give as "
                    f"many samples as fill the batches"
                )
            part = self._rows(readings, number, [skip, total, arrival.source], arrival.axis)
            skips, totals, source = part.arrays
            read = np.moveaxis(hidden, linear.axis, -1).reshape(-1, linear.weight.shape[1])
            if self._writer.is_moved or len(source) != len(read):
                read = read[source[:, 0]]
            yield read, skips, totals, part.held_out

    def _rows(self, readings: Readings, number: int, arrays: Sequence[Array], axis: int) -> Rows:
        """The rows of ``arrays``, which are shaped like the stream."""
        samples = readings.samples[number]
        layout = Layout.of(arrays[0].shape, axis, len(samples), readings.examples[1])
        mask = None if self._masks is None else self._masks[number]
        return rows_of(arrays, [layout] * len(arrays), samples, mask)
