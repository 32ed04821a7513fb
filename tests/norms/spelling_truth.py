"""``Truth`` and ``Case``: a generated graph, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Truth:
    """The norm from value ``input`` to value ``output``.

    ``axes`` are those of ``input``; for batch_norm, the axis of its channels. ``gamma`` and
    ``beta``: float64 of ``normalized_shape``, None when 1 and 0. ``mean`` and ``variance`` are a
    batch_norm's.
    """

    kind: str
    axes: tuple[int, ...]
    normalized_shape: tuple[int, ...]
    epsilon: float
    gamma: Array | None
    beta: Array | None
    input: str
    output: str
    mean: Array | None = None
    variance: Array | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A graph and the norms in it; none for a near-miss.

    ``delicate``: its truth holds up to float32 rounding only. ``has_root``: a near-miss takes a
    square root of a statistic, so it has to be rejected with a reason.
    """

    proto: onnx.ModelProto
    truths: tuple[Truth, ...]
    description: str
    delicate: bool = False
    has_root: bool = False

    @property
    def truth(self) -> Truth:
        (truth,) = self.truths
        return truth

    def __repr__(self) -> str:
        return f"Case({self.description})"
