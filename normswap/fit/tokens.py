"""The tokens of a value as rows, with their samples and positions, and groups of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.fit.calibration import Batches
from normswap.fit.sweep import HELD_OUT, Example, Readings
from normswap.graph.graph import Array, Graph
from normswap.norms.site import Site

TOKENS = ("all", "class", "position")

Masks = Sequence[Array]
"""Per batch, which tokens count: booleans [samples, positions]."""


@dataclass(frozen=True)
class Layout:
    """The axes of a value that hold its ``samples`` and its ``channels``. All other axes together,
    in order, are the positions."""

    samples: int
    channels: int

    @classmethod
    def of(
        cls, shape: Sequence[int], channels: int, count: int, example: Example | None = None
    ) -> Layout:
        """The layout of a value of ``shape`` with ``count`` samples: they are on the first axis of
        that size, also at the ``example``; else on the first axis, which is longer where samples
        are cut into windows."""
        others = [axis for axis in range(len(shape)) if axis != channels]
        fits = [a for a in others if shape[a] == count]
        if example is not None and example.shape is not None:
            fits = [a for a in fits if example.shape[a] == example.count] or fits
        return cls(fits[0] if fits else others[0], channels)

    def rows(self, array: Array) -> Array:
        """``array`` as [samples (times windows), positions, channels]."""
        moved = np.moveaxis(array, (self.samples, self.channels), (0, -1))
        return moved.reshape(len(moved), -1, moved.shape[-1])

    def constant(self, table: Array, shape: Sequence[int]) -> Array:
        """``table`` [positions, channels] as a constant that broadcasts to a value of ``shape``."""
        sizes = [shape[a] for a in range(len(shape)) if a not in (self.samples, self.channels)]
        array = table.reshape(1, *sizes, table.shape[-1])
        array = np.moveaxis(array, (0, -1), (self.samples, self.channels))
        return array[0] if self.samples == 0 else array


@dataclass(frozen=True)
class Rows:
    """Rows of a batch: the ``arrays`` as [N, C], and for each row [N] its ``position`` and whether
    its sample is ``held_out``."""

    arrays: list[Array]
    position: Array
    held_out: Array

    def parts(self, *arrays: Array) -> tuple[list[Array], list[Array]]:
        """``arrays`` [N, ...] split into those of the samples to fit and of those held out."""
        fit, held = ~self.held_out, self.held_out
        return [array[fit] for array in arrays], [array[held] for array in arrays]


def rows(readings: Readings, axes: Sequence[int], masks: Masks | None = None) -> Iterator[Rows]:
    """The rows of every batch that count. ``axes``: the channel axis of each array; all arrays must
    have the same positions."""
    for number, (batch, samples) in enumerate(zip(readings, readings.samples, strict=True)):
        layouts = [
            Layout.of(array.shape, axis, len(samples), example)
            for array, axis, example in zip(batch, axes, readings.examples, strict=True)
        ]
        yield rows_of(batch, layouts, samples, None if masks is None else masks[number])


def rows_of(
    arrays: Sequence[Array], layouts: Sequence[Layout], samples: Array, mask: Array | None
) -> Rows:
    """The rows of one batch that count; ``samples``: the numbers of its samples."""
    tables = [layout.rows(array) for array, layout in zip(arrays, layouts, strict=True)]
    leading, positions = tables[0].shape[:2]
    sample = np.repeat(samples, max(leading // len(samples), 1))[:leading]
    if len(sample) < leading:  # no axis tells the samples apart
        sample = np.arange(leading)
    held_out = np.repeat(sample % HELD_OUT == HELD_OUT - 1, positions)
    position = np.tile(np.arange(positions), leading)
    flat = [table.reshape(-1, table.shape[-1]) for table in tables]
    if mask is None or mask.shape != (leading, positions):
        return Rows(flat, position, held_out)
    chosen = mask.reshape(-1)
    return Rows([array[chosen] for array in flat], position[chosen], held_out[chosen])


def special_positions(graph: Graph, sites: Sequence[Site], batches: Batches) -> Array | None:
    """Which positions of a tower hold class, register or [BOS] tokens: booleans [positions].

    These come from the weights alone, so they are the same for all samples at the tower's first
    norm. None where no position is, or where all are.
    """
    first, batch = sites[0], batches[0]
    axes = first.axes
    count = len(next(iter(batch.values())))
    x = graph.value(first.input)
    if len(axes) != 1 or count < 2:
        return None
    inputs = [graph.value(name) for name in batch]
    (array,) = graph.slice(inputs, [x])(list(batch.values()))
    tokens = Layout.of(array.shape, axes[0], count).rows(array)
    same = (tokens == tokens[:1]).all(axis=(0, 2))
    return None if same.all() or not same.any() else same


def groups(tokens: str, special: Array | None, positions: int) -> Array:
    """The group of every position, integers [positions]: one for 'all'; for 'class' another one for
    ``special`` positions, where the value has them; for 'position' one for each."""
    if tokens == "position":
        return np.arange(positions)
    if tokens == "class" and special is not None and len(special) == positions:
        return special.astype(np.intp)
    return np.zeros(positions, np.intp)
