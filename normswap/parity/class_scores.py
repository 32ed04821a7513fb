"""How far the class scores of one model are from another's. Everything is computed in float64.

Scores are arrays [rows, classes] of one shape: logits, or probabilities where all rows of both
arrays are non-negative and sum to 1 (within 1 %, which half precision needs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from normswap.graph.graph import Array

_TOP = 5
_SUM = 1e-2


def top5_agreement(reference: Array, candidate: Array) -> float:
    """The share of rows, 0 to 1, whose first class in the reference is among the candidate's five
    first: fewer than five classes score higher there, and of those that score the same the first
    come first. A row with NaN in either array does not agree.

    NaN for empty arrays and for fewer than six classes, where it would say nothing.
    Raises ValueError unless both have one shape [rows, classes].
    """
    tally = ClassScores()
    tally.add(reference, candidate)
    return tally.top5_agreement


def kl_divergence(reference: Array, candidate: Array) -> float:
    """KL(reference || candidate) = sum_c p_c log(p_c / q_c) in nats, the mean over rows.

    p and q are the probabilities, of logits their softmax. A probability of zero in the candidate
    counts as float64's smallest normal number, so that the result is finite. NaN for empty arrays,
    for a single class, and where either array holds NaN or infinity.
    Raises ValueError unless both have one shape [rows, classes].
    """
    tally = ClassScores()
    tally.add(reference, candidate)
    return tally.kl_mean


@dataclass
class ClassScores:
    """The metrics above over all pairs of arrays added, as if their rows stood in one array; but
    whether they are probabilities is decided pair by pair."""

    _in_top5: list[Array] = field(default_factory=list)
    _divergences: list[Array] = field(default_factory=list)

    def add(self, reference: Array, candidate: Array) -> None:
        """Counts one pair of arrays."""
        if reference.shape != candidate.shape or reference.ndim != 2:
            raise ValueError(f"class scores of shapes {reference.shape} and {candidate.shape}")
        if not reference.size:
            return
        a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
        self._in_top5.append(_in_top5(a, b))
        self._divergences.append(_divergences(a, b))

    @property
    def top5_agreement(self) -> float:
        return float(np.concatenate(self._in_top5).mean()) if self._in_top5 else math.nan

    @property
    def kl_mean(self) -> float:
        return float(np.concatenate(self._divergences).mean()) if self._divergences else math.nan


def _in_top5(a: Array, b: Array) -> Array:
    """1.0 or 0.0 for each row; NaN where there are too few classes."""
    if a.shape[1] <= _TOP:
        return np.full(len(a), math.nan)
    first = a.argmax(-1)[:, None]
    score = np.take_along_axis(b, first, axis=-1)
    before = (b > score) | ((b == score) & (np.arange(b.shape[1]) < first))
    whole = ~(np.isnan(a) | np.isnan(b)).any(-1)
    return np.asarray((before.sum(-1) < _TOP) & whole, np.float64)


def _divergences(a: Array, b: Array) -> Array:
    """Of each row."""
    if a.shape[1] == 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(len(a), math.nan)
    given = _are_probabilities(a) and _are_probabilities(b)
    p, q = (_log_of_probabilities(x) if given else _log_softmax(x) for x in (a, b))
    # Zero for equal rows, and above it but for rounding.
    return np.maximum((np.exp(p) * (p - q)).sum(-1), 0)


def _are_probabilities(scores: Array) -> bool:
    return bool((scores >= 0).all() and (np.abs(scores.sum(-1) - 1) <= _SUM).all())


def _log_of_probabilities(scores: Array) -> Array:
    smallest = np.finfo(np.float64).tiny
    return np.asarray(np.log(np.maximum(scores / scores.sum(-1, keepdims=True), smallest)))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
