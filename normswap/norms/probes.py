"""What a region's exits do on probes of one shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normswap.graph.graph import Array
from normswap.norms.evaluation import WHOLE, RegionRunner, repeats
from normswap.norms.formula import Statistics

LARGE, TINY, VANISHING = 1e5, 1e-9, 1e-30
_OUTLIER = 1e2
_NUDGE = 3.0
_LINE = 3  # rows at least to fit a line to: one goes through any two


class Probes:
    """Inputs ``[n, *shape]`` by name and the exits' values for them, evaluated when asked for.

    ``plain``: unit scale, row means. ``nudged``: the same but for one element of each.
    ``large``: 1e5 with row means of three times that. ``tiny``: 1e-9. ``vanishing``: 1e-30.
    ``outliers``: two elements of 1e2 at fixed places.
    """

    def __init__(self, run: RegionRunner, shape: tuple[int, ...], count: int = 0) -> None:
        """``count``: how many; by default what a norm over the longest axis needs."""
        self._run = run
        self._shape = shape
        self._count = count or repeats(shape)
        self._more: dict[int, Probes] = {}
        random = np.random.default_rng(0)
        unit = random.standard_normal((self._count, *shape))
        means = random.standard_normal((*unit.shape[:-1], 1))
        plain = unit + 0.5 * means
        outliers = plain.copy()
        outliers[..., shape[-1] // 3] += _OUTLIER
        outliers[..., -1] -= 0.5 * _OUTLIER
        nudged = plain.copy()
        self.nudged_at = tuple(size // 2 for size in shape)
        at: tuple[Any, ...] = (slice(None), *self.nudged_at)
        nudged[at] += _NUDGE
        self._unit = unit
        self.inputs = {
            "plain": plain,
            "nudged": nudged,
            "large": LARGE * (unit + 3 * means),
            "tiny": TINY * unit,
            "vanishing": VANISHING * unit,
            "outliers": outliers,
        }
        self._outputs: dict[str, list[Array | None]] = {}

    def to_fit(self, statistics: Statistics, over: tuple[int, ...]) -> Probes:
        """As many of these probes as determine a weight and bias per position of the axes ``over``.

        Within one row of statistics every norm is a line in every other. Not more than the bound on
        memory allows.
        """
        taken = {*statistics.axes, *over}
        rows = math.prod(size for axis, size in enumerate(self._shape) if axis not in taken)
        count = -(-_LINE // rows)
        if count <= self._count or count * math.prod(self._shape) > WHOLE:
            return self
        if count not in self._more:
            self._more[count] = Probes(self._run, self._shape, count)
        return self._more[count]

    def of(self, name: str, index: int) -> Array | None:
        """Exit ``index`` on the probe ``name``; None where its shape is another."""
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


def touched(changed: Array) -> list[Array]:
    """Along each axis the positions at which ``changed`` [probes, *shape] holds."""
    mask = changed.any(axis=0)
    return [np.unique(positions) for positions in np.nonzero(mask)]
