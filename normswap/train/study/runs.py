"""The runs of a comparison, and the file that each of them leaves."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array
from normswap.io.atomic import atomic_path
from normswap.train.study.vitals import Onset, Vitals

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


@dataclass(frozen=True)
class Setting:
    """What hides or causes crashes: see ``TrainOptions``."""

    title: str
    warm_up: bool = True
    clip: float | None = None
    precision: str = "float32"


PLAIN, NO_WARM_UP, CLIP, BFLOAT16 = "plain", "no-warm-up", "clip", "bfloat16"
SETTINGS: Mapping[str, Setting] = {
    PLAIN: Setting("as everywhere"),
    NO_WARM_UP: Setting("no warm-up", warm_up=False),
    CLIP: Setting("gradients clipped at 1", clip=1.0),
    BFLOAT16: Setting("bfloat16 autocast", precision="bfloat16"),
}


@dataclass(frozen=True)
class Run:
    """One training: a variant (``variants.py``), the highest learning rate, the seed, and one of
    ``SETTINGS``."""

    variant: str
    rate: float
    seed: int
    setting: str = PLAIN

    @property
    def name(self) -> str:
        setting = "" if self.setting == PLAIN else f"-{self.setting}"
        return f"{self.variant}-rate{self.rate:g}-seed{self.seed}{setting}"


@dataclass(frozen=True)
class Folded:
    """A trained BatchNorm model whose norms were folded. ``norms_left``: that it still has.
    ``exact``: the exact contract holds against the trained model. ``accuracy``: its own."""

    norms_left: int
    exact: bool
    accuracy: float


@dataclass(frozen=True)
class RunResult:
    """``outcome``: see ``outcome``. ``losses``: of each step, up to where it stopped.

    ``accuracy``, ``validation_accuracy``: share of the test and of the validation set; of a run
    that stopped at NaN, that of always guessing the same class. ``batch_accuracy``: on the test
    set, the BatchNorms with the statistics of each batch instead of their running ones; None
    without BatchNorms and for a run that stopped. ``stopped``: why it did, at the step
    ``stopped_at``, the output of the norm ``stopped_norm`` the first not to be finite (None: none
    of a norm was). ``folded``: None for LN and for a run that stopped. ``vitals``: see
    ``vitals.py``; ``onset``: of a crash, where it began.
    """

    run: Run
    outcome: str
    losses: list[float]
    final_loss: float | None
    accuracy: float
    validation_accuracy: float
    seconds: float
    cpu_seconds: float
    batch_accuracy: float | None = None
    stopped: str | None = None
    stopped_at: int | None = None
    stopped_norm: str | None = None
    folded: Folded | None = None
    vitals: list[Vitals] = field(default_factory=list)
    onset: Onset | None = None

    @property
    def crashed(self) -> bool:
        return self.outcome in CRASHED

    @property
    def plain(self) -> bool:
        return self.run.setting == PLAIN

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> RunResult:
        folded, onset = document["folded"], document["onset"]
        return cls(
            **{
                **document,
                "run": Run(**document["run"]),
                "folded": None if folded is None else Folded(**folded),
                "vitals": [Vitals(**vitals) for vitals in document["vitals"]],
                "onset": None if onset is None else Onset(**onset),
            }
        )


class RunFiles:
    """The finished runs in ``folder``, a JSON file each, and the models of the best ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, result: RunResult) -> None:
        """Whole or not at all."""
        with atomic_path(self.folder / f"{result.run.name}.json") as file:
            file.write_text(json.dumps(result.to_json(), allow_nan=False) + "\n", encoding="utf-8")

    def read(self, run: Run) -> RunResult | None:
        """None if it is not finished. Raises NormswapError for a damaged file."""
        return self._read(self.folder / f"{run.name}.json")

    def _read(self, path: Path) -> RunResult | None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return RunResult.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise NormswapError(
                f"{path}: is no result of a run ({first_line(error)}); remove it to run it again"
            ) from error

    def all(self) -> list[RunResult]:
        """All that are finished. Raises NormswapError for a damaged file."""
        found = [self._read(path) for path in sorted(self.folder.glob("*.json"))]
        return [result for result in found if result is not None]

    def model(self, run: Run) -> Path:
        """Where the trained model of a run is, if it was the best of its variant by then."""
        return self.folder / f"{run.name}.pt2"

    def best(self, variant: str) -> RunResult | None:
        """The best of the finished plain runs of a variant."""
        paths = sorted(self.folder.glob(f"{variant}-rate*.json"))
        results = (self._read(path) for path in paths)
        return best_of([r for r in results if r is not None and r.plain])

    def keep_best_models(self, variants: Iterable[str]) -> None:
        """Removes the models of all other runs."""
        found = [self.best(variant) for variant in variants]
        kept = {self.model(result.run) for result in found if result is not None}
        for path in self.folder.glob("*.pt2"):
            if path not in kept:
                path.unlink(missing_ok=True)


def best_of(results: Sequence[RunResult]) -> RunResult | None:
    """By accuracy on the validation samples, then by name; a run that stopped is none."""
    best: RunResult | None = None
    for result in results:
        if result.stopped is None and (best is None or better(result, best)):
            best = result
    return best


def better(a: RunResult, b: RunResult) -> bool:
    return (a.validation_accuracy, b.run.name) > (b.validation_accuracy, a.run.name)
