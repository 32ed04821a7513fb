"""What a comparison of norms found, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from normswap.timing.bench_report import BenchReport
from normswap.train.study.findings import Finding
from normswap.train.study.groups import difference, groups
from normswap.train.study.runs import RunResult
from normswap.train.study.variants import LN

SCHEMA = "normswap.comparison/1"


@dataclass(frozen=True)
class Options:
    """What is compared. ``model``, ``data``: as they are called; ``digest``: of the untrained
    weights and of all samples."""

    model: str
    data: str
    digest: str
    train_samples: int
    test_samples: int
    variants: list[str]
    rates: list[float]
    seeds: int
    steps: int
    batch: int


@dataclass(frozen=True)
class Deployed:
    """A variant's best run as it would be used, folded if it has BatchNorms.

    ``norms``, ``statistics``: that it has, and that it computes for one sample. ``accuracy``,
    ``onnx_accuracy``: in percent, in torch and in ONNX Runtime. ``file``: in the folder.
    """

    variant: str
    run: str
    norms: int
    statistics: int
    accuracy: float
    onnx_accuracy: float
    file: str


@dataclass(frozen=True)
class Comparison:
    """``runs``: all of them. ``bench``: of ``deployed``, LN
    first; None if all runs of LN, or of the others, stopped."""

    options: Options
    machine: str
    versions: dict[str, str]
    runs: list[RunResult]
    deployed: list[Deployed]
    bench: BenchReport | None
    findings: list[Finding]

    @property
    def cpu_seconds(self) -> float:
        """Of all runs together."""
        return sum(result.cpu_seconds for result in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: ``schema`` ("normswap.comparison/1"), then the fields of this
        class, ``groups`` (see ``Group``), and each variant's ``difference_from_ln``. The schema's
        number goes up when a field is removed or changes its meaning, not when one is added."""
        variants = self.options.variants
        return {
            "schema": SCHEMA,
            "options": dataclasses.asdict(self.options),
            "machine": self.machine,
            "versions": self.versions,
            "cpu_seconds": self.cpu_seconds,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "groups": [dataclasses.asdict(g) for v in variants for g in groups(self.runs, v)],
            "difference_from_ln": {
                variant: dataclasses.asdict(difference(self.runs, variant, LN))
                for variant in variants
                if variant != LN
            },
            "deployed": [dataclasses.asdict(model) for model in self.deployed],
            "bench": None if self.bench is None else self.bench.to_json(),
            "runs": [result.to_json() for result in self.runs],
        }
