"""Which values of two graphs are the same, found by what they hold.

Names and operators say nothing after a rewrite, and nothing across formats. Numbers do: a value of
the reference has an equal in the candidate where some value there holds the same numbers, up to the
reference's own rounding; in another order where the shapes differ, and less the mean of each row
where a stream was centred (LayerNorm -> RMSNorm).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array, Value
from normswap.parity.bounds import ulp

_FACTOR = 3.0  # times the reference's own error, which a few draws show
_ULPS = 2.0


@dataclass(frozen=True)
class Known:
    """A value of the reference: in float64, and how far its own runs are from that."""

    truth: Array
    dtype: np.dtype
    largest: float
    rms: float

    @classmethod
    def of(cls, truth: Array, runs: Sequence[Array]) -> Known:
        """``runs``: as it runs, and its neighbours."""
        errors = [np.asarray(run, np.float64) - truth for run in runs]
        with np.errstate(invalid="ignore", over="ignore"):
            largest = max(float(np.abs(e).max(initial=0)) for e in errors)
            rms = max(_rms(e) for e in errors)
        return cls(truth, runs[0].dtype, largest, rms)

    @property
    def allowed(self) -> float:
        """The largest error that is rounding."""
        return self._allowed(self.truth)[0]

    def largest_error(self, other: Array) -> float:
        """Of a value of the same shape."""
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(np.asarray(other, np.float64) - self.truth).max(initial=0)
        return float(np.nan_to_num(error, nan=np.inf))

    def equals(self, other: Array) -> bool:
        if other.size != self.truth.size:
            return False
        theirs = np.asarray(other, np.float64)
        if _squeezed(theirs) != _squeezed(self.truth):
            ours, theirs = np.sort(self.truth.reshape(-1)), np.sort(theirs.reshape(-1))
            return self._excess(ours, theirs) <= 1
        ours = self.truth.reshape(theirs.shape)
        if self._excess(ours, theirs) <= 1:
            return True
        if ours.ndim < 2:
            return False
        centred = ours - ours.mean(-1, keepdims=True)
        return self._excess(centred, theirs) <= 1

    def _allowed(self, ours: Array) -> tuple[float, float]:
        """For the largest error and for the root mean square."""
        scale = float(np.abs(ours).max(initial=0))
        slack = _ULPS * float(ulp(self.dtype, scale))
        return _FACTOR * self.largest + slack, _FACTOR * self.rms + slack

    def _excess(self, ours: Array, theirs: Array) -> float:
        with np.errstate(invalid="ignore", over="ignore"):
            error = theirs - ours
            largest, rms = self._allowed(ours)
            found = (float(np.abs(error).max(initial=0)), largest), (_rms(error), rms)
        if np.isnan(error).any():
            return np.inf
        return max(0.0 if not e else e / bound if bound else np.inf for e, bound in found)


class Candidates:
    """The values of a candidate, to be looked up by what they hold."""

    def __init__(self, values: Iterable[Value], arrays: Iterable[Array]) -> None:
        self._by_size: dict[int, list[tuple[Value, Array]]] = {}
        for value, array in zip(values, arrays, strict=True):
            self._by_size.setdefault(array.size, []).append((value, array))

    def equal_of(self, known: Known) -> Value | None:
        """The first value that equals ``known``."""
        for value, array in self._by_size.get(known.truth.size, ()):
            if known.equals(array):
                return value
        return None

    def least_error(self, known: Known) -> float | None:
        """The smallest error of any value of its shape."""
        same = self._by_size.get(known.truth.size, ())
        errors = [known.largest_error(a) for _, a in same if a.shape == known.truth.shape]
        return min(errors, default=None)


def _squeezed(array: Array) -> tuple[int, ...]:
    return tuple(size for size in array.shape if size > 1)


def _rms(error: Array) -> float:
    return float(np.sqrt(np.mean(np.square(error)))) if error.size else 0.0
