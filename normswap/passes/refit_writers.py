"""What writes to the residual stream is fitted to the original's stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.fit.covariance import JointMoments
from normswap.fit.processes import over_processes
from normswap.fit.ridge import fit_ridge
from normswap.fit.rows import Layout, Masks, Rows, rows_of
from normswap.fit.sweep import Readings, Stop
from normswap.graph.graph import Array, Graph, Runner, Value
from normswap.graph.linear import Linear, linear_writing
from normswap.locate.passthrough import PASS_THROUGH
from normswap.locate.residuals import Residual, is_attention, is_product, residuals
from normswap.locate.towers import towers
from normswap.passes.calibrated import Fitted, Plan

_MOVING = PASS_THROUGH | {"Mul", "Pad", "aten.roll.default"}
_COPYING = {"Identity", "Dropout", "Cast"}
_PATH = 64  # operators, at most, between a writer and the sum


def writer_stops(plan: Plan, sites: Sequence[Fitted]) -> tuple[list[Stop], list[str]]:
    """The refits of the linear layers that write to the stream behind the first of ``sites``, and
    notes on those that cannot be refitted."""
    graph = plan.graph
    tower = towers(graph)
    changed = graph.descendants(graph.value(f.site.output) for f in sites)
    masks = {f.site.tower: f.masks for f in reversed(sites)}  # the first's: not [EOS] alone
    stops: list[Stop] = []
    moved = []
    for residual in residuals(graph):
        if residual.branch not in changed:
            continue
        writer = _writer(graph, residual)
        if writer is None:
            moved.append(residual.add.output.name)
        else:
            stops.append(_Refit(plan, writer, masks.get(tower.get(residual.branch, ""))))
    if not moved:
        return stops, []
    told = f"{len(moved)} writers of the stream keep their weights, since what they write is moved"
    return stops, [f"{told} or changed before it is added: up to '{moved[0]}' and the like"]


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
        if node is None or node.op not in _MOVING:
            return None
        value = next(v for v in node.inputs if v is not None and not v.is_constant)
    nodes = graph.ancestors([residual.branch], stop=[linear.output])
    if len(nodes) > _PATH or any(is_product(node) or is_attention(node) for node in nodes):
        return None  # where things move to depends on what is not computed again for that
    inputs = tuple(graph.sources([residual.branch], stop=[linear.output]))
    path = graph.slice([linear.output, *inputs], [residual.branch], np.float64)
    is_moved = any(node.op not in _COPYING for node in nodes)
    return _Writer(linear, path, is_moved, inputs, skip, residual.add.output)


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
    ridge regression of t - scale * (W h + b) on h gives what W and b lack. ``scale`` is LayerScale,
    or ones.
    """

    def __init__(self, plan: Plan, writer: _Writer, masks: Masks | None) -> None:
        self.reads = (writer.linear.input, writer.skip, *writer.inputs)
        self.targets = (plan.original.value(writer.total.name),)
        self._plan, self._writer, self._masks = plan, writer, masks

    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        linear = self._writer.linear
        size = linear.weight.shape
        old_bias = np.zeros(size[0]) if linear.bias is None else linear.bias
        sums = JointMoments(size[1], size[0]), JointMoments(size[1], size[0])
        scale = np.zeros(size[0])
        for number, (hidden, skip, *inputs, total) in enumerate(readings):
            arrival = _arrival(self._writer, hidden, inputs)
            if arrival is None or not arrival.scale.any():
                self._plan.notes.append(f"'{linear.name}' keeps its weight: it is not in place")
                return {}
            scale = arrival.scale
            part = self._rows(readings, number, [skip, total, arrival.source], arrival.axis)
            skips, totals, source = part.arrays
            read = np.moveaxis(hidden, linear.axis, -1).reshape(-1, size[1])
            if self._writer.is_moved or len(source) != len(read):
                read = read[source[:, 0]]
            wanted = totals.astype(np.float64) - skips
            for moments, arrays in zip(sums, part.parts(read, wanted), strict=True):
                moments.add(*arrays)
        old = (scale[:, None] * linear.weight).T
        merged = [over_processes(moments) for moments in sums]
        fit = fit_ridge(*(moments.residual(old, scale * old_bias) for moments in merged))
        alive = scale != 0
        inverse = np.where(alive, 1 / np.where(alive, scale, 1.0), 0.0)
        weight = linear.weight + inverse[:, None] * fit.weight.T
        linear.write(weight, old_bias + inverse * fit.bias)
        return {}

    def _rows(self, readings: Readings, number: int, arrays: Sequence[Array], axis: int) -> Rows:
        """The rows of ``arrays``, which are shaped like the stream."""
        samples = readings.samples[number]
        layout = Layout.of(arrays[0].shape, axis, len(samples), readings.examples[1])
        mask = None if self._masks is None else self._masks[number]
        return rows_of(arrays, [layout] * len(arrays), samples, mask)
