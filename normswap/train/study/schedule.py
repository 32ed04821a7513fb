"""Which runs a comparison makes next: a function of the results that there are, so that it goes on
where it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from normswap.train.study.groups import at_best_rate
from normswap.train.study.runs import (
    BFLOAT16,
    CLIP,
    DIVERGED,
    NO_WARM_UP,
    PLAIN,
    STUCK,
    TRAINED,
    Run,
    RunResult,
)

Found = Mapping[Run, RunResult]
_RUNGS = 12  # rates at most: the last is 2,000 times the first
_SLOW = 2.0  # times as long, before it has been measured


class Schedule(Protocol):
    """``due``: the runs that are to be made next, in order, given those that are done; empty at the
    end. What comes after them may depend on their results."""

    def due(self, found: Found) -> list[Run]: ...


@dataclass(frozen=True)
class Grid:
    """Every variant at every rate with every seed."""

    variants: Sequence[str]
    rates: Sequence[float]
    seeds: int

    def due(self, found: Found) -> list[Run]:
        runs = [
            Run(variant, rate, seed)
            for seed in range(self.seeds)
            for rate in self.rates
            for variant in self.variants
        ]
        return [run for run in runs if run not in found]


@dataclass(frozen=True)
class UpToTheFirstFailure:
    """Rates from ``lowest`` on, each twice the last, with one seed, until a variant fails; the
    other seeds at that rate and the one before it, then at the best rate of each variant; then one
    seed at those two rates with the other ``SETTINGS``, bfloat16 last.

    A variant fails at a rate if its loss diverges, or if it is stuck after it had trained at a
    lower rate: at a rate too low for the steps, stuck is no failure.
    """

    variants: Sequence[str]
    lowest: float
    seeds: int

    def due(self, found: Found) -> list[Run]:
        ladder = self._ladder(found)
        if missing := self._missing(found, ladder[-1:], [0]):
            return missing
        around = self.around(found)
        more = range(self.seeds)
        if missing := self._missing(found, around, more):
            return missing
        first = [r for run, r in found.items() if r.plain and run.seed == 0]
        best = {v: at_best_rate(first, v).rate for v in self.variants}
        # At the best rate of one variant all of them: seeds give pairs to compare.
        if missing := self._missing(found, sorted(set(best.values())), more):
            return missing
        for setting in (NO_WARM_UP, CLIP, BFLOAT16):
            if missing := self._missing(found, around, [0], setting):
                return missing
        return []

    def around(self, found: Found) -> list[float]:
        """The highest rate at which all is well, and the one at which the first variant fails."""
        failed = self._ladder(found)[-1]
        return [failed / 2, failed]

    def _ladder(self, found: Found) -> list[float]:
        """The rates so far, with the next one if none has failed."""
        rates = [self.lowest]
        while len(rates) < _RUNGS:
            if self._missing(found, rates[-1:], [0]):
                break
            if any(self._fails(found, variant, rates[-1]) for variant in self.variants):
                break
            rates.append(2 * rates[-1])
        return rates

    def _fails(self, found: Found, variant: str, rate: float) -> bool:
        result = found[Run(variant, rate, 0)]
        if result.outcome != STUCK:
            return result.outcome == DIVERGED
        return any(
            r.outcome == TRAINED and run.rate < rate and r.plain
            for run, r in found.items()
            if run.variant == variant
        )

    def _missing(
        self, found: Found, rates: Sequence[float], seeds: Sequence[int], setting: str = PLAIN
    ) -> list[Run]:
        runs = [
            Run(variant, rate, seed, setting)
            for seed in seeds
            for rate in rates
            for variant in self.variants
        ]
        return [run for run in runs if run not in found]


@dataclass(frozen=True)
class Budget:
    """``hours``: in which all runs of this sitting are to end, ``processes`` at a time."""

    hours: float | None

    def fits(self, run: Run, found: Found, elapsed: float) -> bool:
        """Whether a run that begins ``elapsed`` seconds after the sitting did would end in time, if
        it takes as long as those before it: of its variant and setting, else of its setting, else
        of all (twice as long for bfloat16, which not every processor has)."""
        if self.hours is None:
            return True
        whole = {other: r.seconds for other, r in found.items() if r.stopped is None}
        alike = [
            s for o, s in whole.items() if (o.variant, o.setting) == (run.variant, run.setting)
        ]
        same = [s for o, s in whole.items() if o.setting == run.setting]
        seconds = alike or same or list(whole.values())
        slow = _SLOW if run.setting == BFLOAT16 and not same else 1.0
        return elapsed + slow * float(np.mean(seconds or [0.0])) <= 3600 * self.hours
