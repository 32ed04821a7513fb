"""``--ensure``: how close to the original an approximate swap has to stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.parity.held_out import HeldOut, RunBy

METRICS = ("top1", "cosine", "sqnr")
_FORM = re.compile(r"\s*([a-z0-9]+)\s*>=\s*([-+0-9.e]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Requirement:
    """``metric`` must reach ``least``: 'top1', the share of samples whose largest class score is
    the original's (0 to 1); 'cosine', the mean over rows (-1 to 1); 'sqnr', in decibels."""

    metric: str
    least: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """From ``METRIC>=NUMBER``. Raises NormswapError for anything else."""
        match = _FORM.fullmatch(text)
        try:
            metric, least = (match[1].lower(), float(match[2])) if match else ("", 0.0)
        except ValueError:
            metric, least = "", 0.0
        if metric not in METRICS or not np.isfinite(least):
            raise NormswapError(
                f"--ensure: '{text}' is no requirement; give {' or '.join(METRICS)}, '>=' and a "
                f"number, as in 'top1>=0.99'"
            )
        top = {"top1": 1.0, "cosine": 1.0}.get(metric)
        if top is not None and least > top:
            raise NormswapError(f"--ensure: {metric} is never above {top:g}, got {least:g}")
        return cls(metric, least)

    def __str__(self) -> str:
        return f"{self.metric} >= {self.least:g}"


class Judge:
    """Holds models against the original, on data that no fit has seen.

    Judged are the outputs that depend on nothing but the data's inputs: all of them, the worst of
    which counts; for 'top1' the class scores (``HeldOut.scores``). ``run_by``: as for ``HeldOut``.
    Raises NormswapError where there is none.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Mapping[str, Array]],
        requirement: Requirement,
        run_by: RunBy | None = None,
    ) -> None:
        self.requirement = requirement
        self.held_out = HeldOut(model, batches, run_by)
        self._outputs = self.held_out.outputs
        if requirement.metric == "top1":
            scores = self.held_out.scores
            self._outputs = [] if scores is None else [scores]
        if not self._outputs:
            wanted = "class scores" if requirement.metric == "top1" else "an output"
            raise NormswapError(
                f"--ensure: {model.name} has no output with {wanted} that the calibration data "
                f"({', '.join(sorted(batches[0]))}) is enough for; try cosine>="
            )

    @property
    def samples(self) -> int:
        return self.held_out.samples

    def measure(self, model: Model) -> float:
        """The requirement's metric, of the original and ``model``."""
        return self.verdict(model)[0]

    def error(self, model: Model) -> float:
        """The error's share of the outputs' power: tells apart what 'top1' does not."""
        return self.verdict(model)[1]

    def verdict(self, model: Model) -> tuple[float, float]:
        """``measure`` and ``error``, from one run."""
        found = self.held_out.similarities(model, self._outputs)
        shares = [10 ** (-s.sqnr_db / 10) for s in found]
        metric = np.min([_METRIC[self.requirement.metric](s) for s in found])  # NaN if any is
        return float(metric), float(np.max(np.where(np.isnan(shares), np.inf, shares)))

    def meets(self, model: Model) -> bool:
        return self.measure(model) >= self.requirement.least


_METRIC = {
    "top1": lambda s: s.top1_agreement,
    "cosine": lambda s: s.cosine_mean,
    "sqnr": lambda s: s.sqnr_db,
}
