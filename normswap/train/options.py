"""What a training run is: its length, its rates, its precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

from normswap.errors import NormswapError

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``train``.

    ``steps``: updates of the weights. ``batch``: samples per update, of all processes and
    ``accumulate`` parts together. ``learning_rate``: the highest; ``warm_up``: steps in which it
    rises from 0. ``weight_decay``: of matrices, not of norms and biases. ``clip``: the norm that
    gradients are scaled down to. ``ema``: the decay of an exponential average of the weights, which
    are the result then. ``precision``: 'bfloat16' is torch's autocast (``narrow.py``), the weights
    stay float32. Raises NormswapError for numbers out of range.
    """

    steps: int
    batch: int
    learning_rate: float
    warm_up: int
    weight_decay: float = 0.05
    clip: float | None = 1.0
    accumulate: int = 1
    ema: float | None = None
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise NormswapError(f"{name}: is {getattr(self, name)}; take 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise NormswapError(f"learning rate: is {self.learning_rate:g}; take a positive one")
        if not 0 <= self.warm_up <= self.steps:
            raise NormswapError(
                f"warm-up: is {self.warm_up} of {self.steps} steps; take 0 to {self.steps}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise NormswapError(f"weight decay: is {self.weight_decay:g}; take 0 or more")
        if self.clip is not None and not self.clip > 0:
            raise NormswapError(f"clip: is {self.clip:g}; take a positive norm")
        if self.ema is not None and not 0 < self.ema < 1:
            raise NormswapError(f"ema: is {self.ema:g}; take a decay between 0 and 1")
        if self.precision not in PRECISIONS:
            raise NormswapError(f"precision: '{self.precision}' is none of {', '.join(PRECISIONS)}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step from 0 on: linear warm-up, then a cosine to 0.

        Loshchilov and Hutter, "SGDR" (2017), one cycle.
        """
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        share = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
