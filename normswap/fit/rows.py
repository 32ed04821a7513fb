"""The rows (tokens of samples) of a value: the sample, the position, and whether they count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.fit.sweep import HELD_OUT, Example, Readings
from normswap.graph.graph import Array

Masks = Sequence[Array]
"""Per batch, which tokens count: booleans [samples, positions]."""


@dataclass(frozen=True)
class Layout:
    """Where a value of a given rank has its samples: ``samples`` is that axis; ``channels`` the
    channels' axis. All other axes together, in order, are the positions."""

    samples: int
    channels: int

    @classmethod
    def of(
        cls, shape: Sequence[int], channels: int, count: int, example: Example | None = None
    ) -> Layout:
        """Of a value of ``shape`` with ``count`` samples: the first axis of that size, also at the
        ``example``; or the first axis, which windows of a sample may make longer."""
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
    """Some rows of a batch: the ``arrays`` that were read as [N, C], and of each row [N] its
    ``position`` and whether its sample is ``held_out``."""

    arrays: list[Array]
    position: Array
    held_out: Array

    def parts(self, *arrays: Array) -> tuple[list[Array], list[Array]]:
        """``arrays`` (of each row [N, ...]) of the samples to fit, and of those held out."""
        fit, held = ~self.held_out, self.held_out
        return [array[fit] for array in arrays], [array[held] for array in arrays]


def rows(readings: Readings, axes: Sequence[int], masks: Masks | None = None) -> Iterator[Rows]:
    """The rows of every batch that count. ``axes``: the channel axis of each array that is read;
    all must have the same positions."""
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
