"""What a benchmark found, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

SCHEMA = "normswap.bench/1"


@dataclass(frozen=True)
class Ratio:
    """Of the times of one model to those of another, round by round: the median with its
    95 % confidence interval (``low``, ``high``; from order statistics, whatever the distribution),
    and the quartiles of the rounds."""

    median: float
    low: float
    high: float
    quartile_low: float
    quartile_high: float

    @property
    def verdict(self) -> str:
        """'faster', 'slower', or 'no difference shown' where the interval holds 1."""
        if self.low <= 1 <= self.high:
            return "no difference shown"
        return "faster" if self.high < 1 else "slower"


@dataclass(frozen=True)
class Measurement:
    """One model in one runtime.

    ``milliseconds``: per run, the median, with its quartiles. ``ratio``: None for the first model
    of all that could be measured, which the others are held against; ``ratio_in_runtime``: the same
    to the first one in this runtime, None where that is this one or the first of all.
    ``peak_mib``: the largest resident memory of a process of its own that loads the model and runs
    it, above that of one that has only imported the runtime. ``error``: why it could not be
    measured; all figures are None then.
    """

    model: str
    path: str | None
    runtime: str
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio: Ratio | None = None
    ratio_in_runtime: Ratio | None = None
    peak_mib: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class BenchReport:
    """The models in turn, round by round. ``inputs``: sizes by name, as '8x3x224x224 float32'.
    ``versions``: of libraries by name; of the runtimes that took part also what they ran on, as
    '2026.4.1 CPU bfloat16'."""

    inputs: dict[str, str]
    rounds: int
    threads: int
    versions: dict[str, str]
    machine: str
    results: list[Measurement]

    @property
    def complete(self) -> bool:
        """Whether everything could be measured."""
        return all(result.error is None for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: ``schema`` ("normswap.bench/1"), then the fields of this
        class; every ratio also has its ``verdict``. The schema's number goes up when a field is
        removed or changes its meaning, not when one is added."""
        document = {"schema": SCHEMA} | dataclasses.asdict(self)
        for result, written in zip(self.results, document["results"], strict=True):
            if result.ratio is not None:
                written["ratio"]["verdict"] = result.ratio.verdict
            if result.ratio_in_runtime is not None:
                written["ratio_in_runtime"]["verdict"] = result.ratio_in_runtime.verdict
        return document
