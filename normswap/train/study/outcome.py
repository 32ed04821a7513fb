"""How a training run ended, by its losses alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normswap.graph.graph import Array

DIVERGED, STUCK, TRAINED = "diverged", "stuck", "trained"
CRASHED = (DIVERGED, STUCK)
_LAST = 10  # a tenth of the steps
_LEARNED = 0.9


def final_loss(losses: Sequence[float]) -> float:
    """The mean over the last tenth of the steps."""
    return float(np.mean(losses[-max(1, len(losses) // _LAST) :]))


def guessing_loss(labels: Array) -> float:
    """What always answering with the classes' frequencies costs: their entropy in nats."""
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def outcome(losses: Sequence[float], finished: bool, guessing: float) -> str:
    """'diverged': the loss or a gradient became NaN or infinite, or the loss ended above where it
    started. 'stuck': it ended less than a tenth below ``guessing``. Else 'trained'."""
    if not finished or not losses or not math.isfinite(final_loss(losses)):
        return DIVERGED
    if final_loss(losses) > losses[0]:
        return DIVERGED
    return STUCK if final_loss(losses) > _LEARNED * guessing else TRAINED
