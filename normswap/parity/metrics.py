"""How far one array is from another. Everything is computed in float64.

A *row* is what an index into all axes but the last one picks; an array of rank 0 or 1 is one row.
The two arrays have one shape; another one raises ValueError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from normswap.graph.graph import Array
from normswap.parity.report import Histogram

_LOWEST, _HIGHEST = -17.0, 1.0  # the histogram's ends, as powers of ten of the scale
_PER_DECADE = 2  # bins of the histogram; errors are tallied in finer ones, the scale still unknown
_FINE = 32
_DECADES = (-325, 310)  # of float64


def sqnr_db(reference: Array, candidate: Array) -> float:
    """10 log10(sum reference^2 / sum (reference - candidate)^2), in decibels.

    +inf for equal arrays, zeros included; -inf for a reference of zeros and another candidate; NaN
    for empty arrays and where either array holds NaN or infinity.
    """
    tally = Similarity()
    tally.add(reference, candidate)
    return tally.sqnr_db


def cosine(reference: Array, candidate: Array) -> tuple[float, float]:
    """The cosine between corresponding rows: (mean over the rows, worst row).

    Two rows of zeros have cosine 1, a row of zeros and another row 0. (NaN, NaN) for empty arrays
    and where either array holds NaN or infinity. A constant row is a row like any other.
    """
    tally = Similarity()
    tally.add(reference, candidate)
    return tally.cosine_mean, tally.cosine_worst


def max_abs_error(reference: Array, candidate: Array) -> float:
    """The largest |reference - candidate|.

    Equal infinities differ by 0, an infinity and anything else by +inf. NaN in either array makes
    it NaN; so do empty arrays.
    """
    a, b = _pair(reference, candidate)
    if not a.size:
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(a - b)).max())


def top1_agreement(reference: Array, candidate: Array) -> float:
    """The share of rows, 0 to 1, whose largest element is at one place in both arrays.

    Ties go to the first place, so two constant rows agree. A row with NaN in either array does not
    agree. NaN for empty arrays.
    """
    tally = Similarity()
    tally.add(reference, candidate)
    return tally.top1_agreement


def accuracy(outputs: Array, labels: Array) -> float:
    """The share of rows of ``outputs`` [N, classes] whose largest element is at the row's label.

    ``labels``: integers [N]. Ties go to the first place. A row with NaN counts as wrong. NaN for
    empty arrays. Raises ValueError unless there is one label per row.
    """
    scores = np.asarray(outputs, np.float64)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"{labels.shape} labels for outputs of shape {scores.shape}")
    if not scores.size:
        return math.nan
    return float(((scores.argmax(-1) == labels) & ~np.isnan(scores).any(-1)).mean())


def finite_or_none(value: float) -> float | None:
    """For reports, which hold no NaN and no infinity."""
    return value if math.isfinite(value) else None


@dataclass
class ErrorTally:
    """Largest and root-mean-square error over all arrays added; 0 before the first one."""

    maximum: float = 0.0
    count: int = 0
    _squares: float = 0.0

    def add(self, error: Array) -> None:
        """Counts the differences ``error``, which are finite."""
        if error.size:
            self.maximum = max(self.maximum, float(np.abs(error).max()))
            self._squares += float(np.square(error, dtype=np.float64).sum())
            self.count += error.size

    @property
    def rms(self) -> float:
        return math.sqrt(self._squares / self.count) if self.count else 0.0


class ErrorHistogram:
    """The distribution of |reference - candidate| over all pairs of arrays added, as multiples of
    the largest |reference| among them (1 if all are zero): ``Histogram`` with two bins a decade
    from 1e-17 to 10, the same for every histogram.

    Elements that are not finite in both arrays are left out. A bin's ends are right within 4 %.
    """

    def __init__(self) -> None:
        self._scale = 0.0
        self._zeros = 0
        self._counts = np.zeros((_DECADES[1] - _DECADES[0]) * _FINE, np.int64)

    def add(self, reference: Array, candidate: Array) -> None:
        """Counts one pair of arrays of one shape."""
        a, b = _pair(reference, candidate)
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = a[finite], b[finite]
        self._scale = max(self._scale, float(np.abs(a).max(initial=0)))
        with np.errstate(over="ignore"):
            errors = np.abs(a - b)
        errors = np.minimum(errors[errors > 0], np.finfo(np.float64).max)
        self._zeros += a.size - errors.size
        bins = np.floor((np.log10(errors) - _DECADES[0]) * _FINE).astype(int)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def result(self) -> Histogram:
        edges = np.linspace(_LOWEST, _HIGHEST, round((_HIGHEST - _LOWEST) * _PER_DECADE) + 1)
        middles = _DECADES[0] + (np.arange(len(self._counts)) + 0.5) / _FINE
        relative = middles - (math.log10(self._scale) if self._scale else 0)
        bins = np.clip(np.searchsorted(edges, relative, "right") - 1, 0, len(edges) - 2)
        counts = np.bincount(bins, weights=self._counts, minlength=len(edges) - 1)
        return Histogram(edges.tolist(), counts.astype(int).tolist(), self._zeros)


@dataclass
class Similarity:
    """The metrics above over all pairs of arrays added, as if their rows stood in one array."""

    _signal: float = 0.0
    _noise: float = 0.0
    _errors: list[float] = field(default_factory=list)
    _cosines: list[Array] = field(default_factory=list)
    _agreements: list[Array] = field(default_factory=list)

    def add(self, reference: Array, candidate: Array) -> None:
        """Counts one pair of arrays of one shape."""
        a, b = _pair(reference, candidate)
        if not a.size:
            return
        self._errors.append(max_abs_error(a, b))
        with np.errstate(invalid="ignore", over="ignore"):
            self._signal += float(np.square(a).sum())
            self._noise += float(np.square(a - b).sum())
            self._cosines.append(_cosines(a, b))
        whole = ~(np.isnan(a) | np.isnan(b)).any(-1)
        self._agreements.append(((a.argmax(-1) == b.argmax(-1)) & whole).reshape(-1))

    @property
    def sqnr_db(self) -> float:
        if not self._errors or not math.isfinite(self._signal + self._noise):
            return math.nan
        if self._noise == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf

    @property
    def cosine_mean(self) -> float:
        return float(np.concatenate(self._cosines).mean()) if self._cosines else math.nan

    @property
    def cosine_worst(self) -> float:
        return float(np.concatenate(self._cosines).min()) if self._cosines else math.nan

    @property
    def max_abs_error(self) -> float:
        return float(np.max(self._errors)) if self._errors else math.nan

    @property
    def top1_agreement(self) -> float:
        return float(np.concatenate(self._agreements).mean()) if self._agreements else math.nan


class Variation:
    """Whether an output depends on the input at all, as far as the arrays added show.

    Here a row is what an index into the first axis picks: one sample.
    """

    def __init__(self) -> None:
        self._first: Array | None = None
        self._rows = 0
        self._constant = True

    def add(self, array: Array) -> None:
        if not array.size:
            return
        rows = array.reshape(len(array) if array.ndim else 1, -1)
        first = rows[0].copy() if self._first is None else self._first
        self._first = first
        self._rows += len(rows)
        same_row = rows.shape[1] == len(first) and bool((rows == first).all())
        self._constant &= same_row or (self._all_equal and bool((rows == first[0]).all()))

    @property
    def constant(self) -> bool:
        """True for equal rows; a single row shows nothing unless all its elements are equal."""
        if self._first is None or not self._constant:
            return False
        return self._rows > 1 or (len(self._first) > 1 and self._all_equal)

    @property
    def _all_equal(self) -> bool:
        return self._first is not None and bool((self._first == self._first[0]).all())

    def __str__(self) -> str:
        if self._first is None or not self._all_equal:
            return "the same row"
        return f"{float(self._first[0]):g} everywhere"


def _pair(reference: Array, candidate: Array) -> tuple[Array, Array]:
    if reference.shape != candidate.shape:
        raise ValueError(f"arrays of shapes {reference.shape} and {candidate.shape}")
    a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    return np.atleast_1d(a), np.atleast_1d(b)


def _cosines(a: Array, b: Array) -> Array:
    """The cosine of each row."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    # Scaling by the largest element keeps squares of tiny and huge rows in range.
    scales = [np.abs(x).max(-1, keepdims=True) for x in (a, b)]
    a, b = (x / np.where(s > 0, s, 1) for x, s in zip((a, b), scales, strict=True))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.clip((a * b).sum(-1) / np.where(norms > 0, norms, 1), -1, 1)
    both_zero = ~a.any(-1) & ~b.any(-1)
    return np.asarray(np.where(both_zero, 1.0, cosines))
