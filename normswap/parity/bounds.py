"""The errors that the exact contract allows, and when the original's luck is in doubt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from normswap.graph.graph import Array
from normswap.parity.metrics import ErrorTally
from normswap.parity.report import ProbeErrors

_FACTOR = 2.0
_ULPS = 1.0
_DOUBLE_ULPS = 64.0  # of a float64 value, whose own error nothing here can measure
# In doubt, draws of the original's neighbours: some, more unless the error is hopelessly many times
# its bound, and many where it is close to it.
SOME, _MORE, _MANY = 2, 16, 64
_HOPELESS, _CLOSE = 8.0, 1.25


def ulp(dtype: np.dtype[Any], magnitude: Array | float) -> Array:
    """The unit in the last place of numbers of ``magnitude`` >= 0 in ``dtype``, in float64.

    eps * magnitude, but never less than eps * smallest_normal: subnormal numbers all have that
    spacing (2^-149 in float32, 2^-24 in float16, 2^-133 in bfloat16), so rounding to one is off by
    up to half of it, however small the number: fl(a op b) = (a op b)(1 + d) + h with |d| <= eps/2
    and |h| <= eps * smallest_normal / 2 (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, section 2.1).
    """
    info = ml_dtypes.finfo(dtype)
    return np.asarray(float(info.eps) * np.maximum(magnitude, float(info.smallest_normal)))


@dataclass
class BoundedErrors:
    """The errors at one value over the probes of one kind, against float64.

    Allowed is e(candidate) <= 2 e(original) + one ulp, for the largest error and for the root mean
    square; ulp is that of max |truth| (64 of them for float64). e(original) is its largest over the
    original and those ``neighbours`` of it (by draw) that were run.
    """

    kind: str
    dtype: np.dtype[Any]
    scale: float = 0.0
    original: ErrorTally = field(default_factory=ErrorTally)
    candidate: ErrorTally = field(default_factory=ErrorTally)
    neighbours: dict[int, ErrorTally] = field(default_factory=dict)

    def result(self) -> ProbeErrors:
        ulps = _DOUBLE_ULPS if self.dtype == np.float64 else _ULPS
        slack = ulps * float(ulp(self.dtype, self.scale))
        draws = [self.original, *self.neighbours.values()]
        largest, rms = max(d.maximum for d in draws), max(d.rms for d in draws)
        return ProbeErrors(
            self.kind, self.candidate.count, self.scale, largest, self.candidate.maximum,
            _FACTOR * largest + slack, rms, self.candidate.rms, _FACTOR * rms + slack,
        )  # fmt: skip

    def add(self, truth: Array, original: Array, candidate: Array) -> None:
        """Counts arrays of one shape, in float64, the first two of them finite; where the candidate
        is not, its error is infinite."""
        self.scale = max(self.scale, float(np.abs(truth).max(initial=0)))
        self.original.add(original - truth)
        error = candidate - truth
        self.candidate.add(np.where(np.isfinite(error), error, np.inf))

    def add_neighbour(self, draw: int, truth: Array, nearby: Array) -> None:
        """Counts what the original's neighbour ``draw`` gives, where that is finite."""
        if nearby.shape != truth.shape:
            return
        with np.errstate(invalid="ignore"):
            error = np.asarray(nearby, np.float64) - truth
        self.neighbours.setdefault(draw, ErrorTally()).add(error[np.isfinite(error)])

    @property
    def excess(self) -> float:
        """The error as a multiple of its bound."""
        result = self.result()
        pairs = [(result.max_candidate, result.max_bound), (result.rms_candidate, result.rms_bound)]
        return max(0.0 if not e else e / bound if bound else np.inf for e, bound in pairs)


def largest_excess(errors: Iterable[BoundedErrors]) -> float:
    return max((tally.excess for tally in errors), default=0.0)


def draws_in_doubt(excess: float, drawn: int) -> range:
    """Which neighbours to run next, after ``drawn`` of them, for a largest ``excess``.

    Twice as many each time: more neighbours can only lower the excess, so all of them at once would
    decide nothing else.
    """
    if not drawn:
        return range(SOME if excess > 1 else 0)
    limit, hopeless = (_MORE, _HOPELESS) if drawn < _MORE else (_MANY, _CLOSE)
    return range(drawn, min(2 * drawn, limit) if 1 < excess < hopeless else drawn)
