"""What a comparison of norms found, and what that says about the published claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normswap.timing.bench_report import BenchReport, Ratio
from normswap.train.study.groups import (
    at_best_rate,
    crashes,
    crashes_more,
    difference,
    groups,
    highest_stable,
)
from normswap.train.study.runs import SETTINGS, Run, RunResult
from normswap.train.study.variants import BN, FFN_BN, LN, REP_BN, VARIANTS
from normswap.train.study.vitals import HIDDEN

SCHEMA = "normswap.comparison/2"
GRID, DEIT = "grid", "deit"
"""What runs are made: see ``schedule.py``."""


@dataclass(frozen=True)
class Options:
    """What is compared. ``study``: 'grid' or 'deit'. ``model``, ``data``: as they are called;
    ``digest``: of the untrained weights and of all samples. ``rates``: of 'deit' the first."""

    study: str
    model: str
    data: str
    digest: str
    train_samples: int
    validation_samples: int
    test_samples: int
    variants: list[str]
    rates: list[float]
    seeds: int
    steps: int
    batch: int

    def order(self, run: Run) -> tuple[object, ...]:
        """What runs are sorted by."""
        return (
            list(SETTINGS).index(run.setting),
            run.seed,
            run.rate,
            list(VARIANTS).index(run.variant),
        )


@dataclass(frozen=True)
class Deployed:
    """A variant's best run as it would be used, folded if it has BatchNorms, or a form without
    norms of LN's best run.

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
    """``runs``: all of them; ``due``: how many more were known to be due when the hours ended.
    ``taken_out``: the best LN model without its norms. ``benches``: of ``deployed``, LN first, and
    of ``taken_out``, by the samples at a time; empty if all runs of LN, or of the others, stopped.
    """

    options: Options
    machine: str
    versions: dict[str, str]
    runs: list[RunResult]
    due: int
    deployed: list[Deployed]
    taken_out: list[Deployed]
    benches: dict[int, BenchReport]
    findings: list[Finding]

    @property
    def cpu_seconds(self) -> float:
        """Of all runs together."""
        return sum(result.cpu_seconds for result in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: ``schema`` ("normswap.comparison/2"), then the fields of this
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
            "due": self.due,
            "deployed": [dataclasses.asdict(model) for model in self.deployed],
            "taken_out": [dataclasses.asdict(model) for model in self.taken_out],
            "benches": {str(batch): bench.to_json() for batch, bench in self.benches.items()},
            "runs": [result.to_json() for result in self.runs],
        }


AGREES, DISAGREES, OPEN = "agrees", "disagrees", "not shown"
_SIGNIFICANT = 0.05
_CLAIMED_TIME = 1 / 1.2
_EQUAL = 2.0  # points
_FEWEST_CRASHES = 3
_FEWEST_RUNS = 8  # without a crash: at a share of 31 % one in 20 such studies would have none


@dataclass(frozen=True)
class Finding:
    """``claim``: as published. ``verdict``: 'agrees', 'disagrees', or 'not shown' where the numbers
    do not decide. ``text``: what was measured."""

    claim: str
    verdict: str
    text: str


def find(
    results: Sequence[RunResult], variants: Sequence[str], benches: Mapping[int, BenchReport]
) -> list[Finding]:
    """One finding for each claim that the variants and the measured runtimes say something of."""
    found = []
    if BN in variants:
        found.append(_bn_crashes(results))
    if BN in variants and FFN_BN in variants:
        found.append(_ffn_stabilises(results))
    found += [_accuracy(results, name) for name in (BN, FFN_BN, REP_BN) if name in variants]
    if any(result.onset is not None for result in results):
        found.append(_begins_in_the_ffn(results))
    return found + [time for batch, bench in benches.items() for time in _times(batch, bench)]


def _bn_crashes(results: Sequence[RunResult]) -> Finding:
    claim = "With BatchNorm in place of LayerNorm training often crashes."
    bn, ln = crashes(results, BN), crashes(results, LN)
    if crashes_more(bn, ln) < _SIGNIFICANT:
        verdict, why = AGREES, "BatchNorm crashed more often than LayerNorm"
    elif crashes_more(ln, bn) < _SIGNIFICANT:
        verdict, why = DISAGREES, "it was LayerNorm that crashed more often"
    elif bn[0] == 0 and bn[1] >= _FEWEST_RUNS:
        verdict, why = DISAGREES, "BatchNorm never crashed"
    elif bn[0] == 0:
        verdict, why = OPEN, "too few runs to tell"
    else:
        verdict, why = OPEN, "the difference is within chance"
    return Finding(
        claim,
        verdict,
        f"{_counted(BN, bn)}, {_counted(LN, ln)}: {why}. {_reach(results, (LN, BN))}",
    )


def _ffn_stabilises(results: Sequence[RunResult]) -> Finding:
    claim = "A BatchNorm in the FFN stabilises it."
    ffn, bn = crashes(results, FFN_BN), crashes(results, BN)
    if crashes_more(bn, ffn) < _SIGNIFICANT:
        verdict, why = AGREES, "fewer with it"
    elif crashes_more(ffn, bn) < _SIGNIFICANT:
        verdict, why = DISAGREES, "more with it"
    elif bn[0] == 0:
        verdict, why = OPEN, "there was no crash to fix"
    else:
        verdict, why = OPEN, "the difference is within chance"
    text = f"{_counted(FFN_BN, ffn)}, {_counted(BN, bn)}: {why}. {_reach(results, (BN, FFN_BN))}"
    means = {name: {g.rate: g.mean for g in groups(results, name)} for name in (BN, FFN_BN)}
    if both := means[BN].keys() & means[FFN_BN].keys():
        highest = max(both)
        accuracies = ", ".join(f"{VARIANTS[n]} {own[highest]:.1f} %" for n, own in means.items())
        text += f" Accuracy at the highest rate of both, {highest:g}: {accuracies}."
    return Finding(claim, verdict, text)


def _accuracy(results: Sequence[RunResult], variant: str) -> Finding:
    claim = f"{VARIANTS[variant]} is as accurate as LN."
    ours, theirs = at_best_rate(results, variant), at_best_rate(results, LN)
    gap = difference(results, variant, LN)
    text = (
        f"{VARIANTS[variant]} {ours.mean:.1f} % at rate {ours.rate:g}, LN {theirs.mean:.1f} % at "
        f"{theirs.rate:g}"
    )
    if gap.low is None or gap.high is None:
        return Finding(claim, OPEN, f"{text}: {gap.mean:+.1f} points; one seed shows no more.")
    text += f": {gap.mean:+.1f} points, 95 % interval {gap.low:+.1f} to {gap.high:+.1f}"
    if max(-gap.low, gap.high) <= _EQUAL:
        return Finding(claim, AGREES, f"{text}: within {_EQUAL:g} points.")
    if gap.low > 0 or gap.high < 0:
        word = "better" if gap.mean > 0 else "worse"
        return Finding(claim, DISAGREES, f"{text}: it is {word} here.")
    return Finding(claim, OPEN, f"{text}: too wide to tell.")


def _begins_in_the_ffn(results: Sequence[RunResult]) -> Finding:
    """Of the crashed runs with BatchNorm and none in the FFN, whatever their settings."""
    claim = "BatchNorm crashes because the FFN's hidden values explode first."
    own = [r for r in results if r.run.variant == BN and r.crashed]
    seen = [r.onset for r in own if r.onset is not None]
    first = sum(HIDDEN in onset.statistics for onset in seen)
    alone = sum(onset.statistics == [HIDDEN] for onset in seen)
    text = (
        f"Of {len(own)} crashed runs of BN {len(seen)} left a range before they ended: the FFN's "
        f"hidden values first in {first}, {alone} of them alone."
    )
    if len(seen) < _FEWEST_CRASHES:
        return Finding(claim, OPEN, f"{text} Too few to tell.")
    if 2 * alone > len(seen):
        return Finding(claim, AGREES, text)
    return Finding(claim, DISAGREES if 2 * first < len(seen) else OPEN, text)


def _times(batch: int, bench: BenchReport) -> list[Finding]:
    """Of the first folded BatchNorm model in each runtime; they all have the same operators."""
    runtimes = dict.fromkeys(result.runtime for result in bench.results)
    return [found for runtime in runtimes if (found := _time(batch, bench, runtime)) is not None]


def _time(batch: int, bench: BenchReport, runtime: str) -> Finding | None:
    names = list(VARIANTS.values())
    own = [
        r for r in bench.results if r.runtime == runtime and r.error is None and r.model in names
    ]
    ratios = [r.ratio_in_runtime or r.ratio for r in own if r.model != VARIANTS[LN]]
    if len(ratios) == len(own) or not ratios or ratios[0] is None:
        return None
    ratio: Ratio = ratios[0]
    name = next(r.model for r in own if r.model != VARIANTS[LN])
    claim = f"Folded BatchNorm is about 20 % faster at inference ({runtime}, batch {batch})."
    text = (
        f"{name}, folded, takes {ratio.median:.2f} of LN's time (95 % interval {ratio.low:.2f} to "
        f"{ratio.high:.2f}; 20 % faster would be {_CLAIMED_TIME:.2f})"
    )
    if ratio.verdict == "no difference shown":
        verdict = DISAGREES if ratio.low > _CLAIMED_TIME else OPEN
        return Finding(claim, verdict, f"{text}: no difference was shown.")
    if ratio.verdict == "slower":
        return Finding(claim, DISAGREES, f"{text}: it is slower here.")
    if ratio.low > _CLAIMED_TIME:
        return Finding(claim, DISAGREES, f"{text}: faster, but by less than claimed.")
    return Finding(claim, AGREES, f"{text}.")


def _counted(variant: str, counted: tuple[int, int]) -> str:
    crashed, runs = counted
    return f"{crashed} of {runs} runs of {VARIANTS[variant]} crashed"


def _reach(results: Sequence[RunResult], variants: Sequence[str]) -> str:
    reached = []
    for name in variants:
        rate = highest_stable(results, name)
        reached.append(f"{VARIANTS[name]} {'at none' if rate is None else f'up to {rate:g}'}")
    return f"Within 5 points of its best accuracy and without a crash: {', '.join(reached)}."
