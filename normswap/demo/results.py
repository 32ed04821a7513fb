"""What the demo found, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normswap.parity.report import ExactOutput, ValidationReport
from normswap.timing.paired import Timing

SCHEMA = "normswap.demo/1"


@dataclass(frozen=True)
class Parity:
    """An exact contract: whether it holds, and the largest error as a share of what it allows."""

    passed: bool
    share_of_bound: float

    @classmethod
    def of(cls, report: ValidationReport) -> Parity:
        probes = [p for o in report.outputs if isinstance(o, ExactOutput) for p in o.probes]
        shares = [p.max_candidate / p.max_bound for p in probes if p.max_bound]
        return cls(report.passed, max(shares, default=0.0))


@dataclass(frozen=True)
class Accuracies:
    """Shares of the test images that are classified rightly.

    ``copied`` and ``moments``: every norm of the tower a BatchNorm, fitted that way; ``affine``: an
    affine map, and the stream's writers refitted. All folded, without training.
    """

    original: float
    fused: float
    copied: float
    moments: float
    affine: float


@dataclass(frozen=True)
class VariantResults:
    """One model in one kind of graph.

    ``norms``: how many it has; ``fused``: in the model whose norms are spelled out, how many became
    one operator. ``swapped``: norms that became affine maps, in ``tower`` ('' for a model of one);
    ``folded``: of these, as far as they were folded; ``left``: norms of that tower after that,
    which should be 0. ``statistics``: computed for one image (and one caption) before and after.
    ``timing``: per batch, against ``original``.
    """

    model: str
    kind: str
    norms: int
    fused: int
    fused_parity: Parity
    swapped: int
    folded: int
    tower: str
    left: int
    folded_parity: Parity
    statistics_before: int
    statistics_after: int
    accuracy: Accuracies
    timing: dict[str, Timing]

    @property
    def passed(self) -> bool:
        """Whether everything that is exact is, and no norm is left where they were folded."""
        exact = self.fused_parity.passed and self.folded_parity.passed
        gone = self.left == 0 and self.folded == self.swapped
        return exact and gone and self.fused == self.norms


@dataclass(frozen=True)
class DemoResults:
    """All variants, and the files of ``folder`` (relative) with what they are."""

    folder: Path
    seconds: float
    variants: list[VariantResults]
    files: dict[str, str]

    @property
    def passed(self) -> bool:
        return all(variant.passed for variant in self.variants)

    def to_json(self) -> dict[str, Any]:
        """Keys: ``schema``, ``passed``, ``seconds``, ``variants`` (the fields of the classes
        above, and ``passed``) and ``files``.
        """
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "variants": [{**asdict(v), "passed": v.passed} for v in self.variants],
            "files": self.files,
        }
