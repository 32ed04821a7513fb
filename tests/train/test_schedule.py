"""Which runs are due: a function of the results so far, here of runs that never were."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from normswap.train.study.groups import at_best_rate, difference
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
from normswap.train.study.schedule import Budget, Grid, UpToTheFirstFailure
from normswap.train.study.variants import BN, FFN_BN, LN

VARIANTS = (LN, BN, FFN_BN)
LOW = 0.001
SCHEDULE = UpToTheFirstFailure(VARIANTS, LOW, seeds=3)
Outcome = Callable[[Run], tuple[str, float]]


def _result(run: Run, outcome: str, accuracy: float, seconds: float = 100.0) -> RunResult:
    stopped = "nan" if outcome == DIVERGED else None
    return RunResult(
        run, outcome, [1.0], 1.0, accuracy, accuracy, seconds, seconds, stopped=stopped
    )


def _all(outcome: Outcome, at_a_time: int = 1) -> list[Run]:
    """Runs in the order in which they were made."""
    found: dict[Run, RunResult] = {}
    while due := SCHEDULE.due(found):
        assert not found.keys() & set(due)
        for run in due[:at_a_time]:
            found[run] = _result(run, *outcome(run))
    return list(found)


def _bn_diverges_at_8(run: Run) -> tuple[str, float]:
    """LN is best at 4 times the lowest rate, the others at twice it."""
    if run.variant == BN and run.rate >= 8 * LOW and run.setting != CLIP:
        return DIVERGED, 0.1
    best = 4 * LOW if run.variant == LN else 2 * LOW
    return TRAINED, 0.8 if run.rate == best else 0.7


def test_rates_double_until_one_fails_then_seeds_then_settings() -> None:
    runs = _all(_bn_diverges_at_8)
    assert len(set(runs)) == len(runs) == 12 + 2 * 6 + 6 + 3 * 6
    ladder, seeds, best, settings = runs[:12], runs[12:24], runs[24:30], runs[30:]
    assert [run.rate for run in ladder[::3]] == [LOW, 2 * LOW, 4 * LOW, 8 * LOW]
    assert {(run.seed, run.setting) for run in ladder} == {(0, PLAIN)}
    assert {(run.rate, run.seed) for run in seeds} == {
        (rate, seed) for rate in (4 * LOW, 8 * LOW) for seed in (1, 2)
    }
    assert {(run.rate, run.variant) for run in best} == {(2 * LOW, name) for name in VARIANTS}
    assert [run.setting for run in settings[::6]] == [NO_WARM_UP, CLIP, BFLOAT16]
    assert {run.rate for run in settings} == {4 * LOW, 8 * LOW}


def test_several_at_a_time_and_an_interrupt_come_to_the_same_runs() -> None:
    runs = _all(_bn_diverges_at_8)
    assert set(_all(_bn_diverges_at_8, at_a_time=2)) == set(runs)
    done = {run: _result(run, *_bn_diverges_at_8(run)) for run in runs}
    for count in range(0, len(runs), 7):  # what is due is what comes next, from wherever
        kept = dict(list(done.items())[:count])
        assert SCHEDULE.due(kept)[0] == runs[count]
        backwards = dict(reversed(kept.items()))
        assert SCHEDULE.due(backwards) == SCHEDULE.due(kept)


@pytest.mark.parametrize(
    ("outcome", "around"),
    [
        # stuck at a rate that is too low for the steps is no failure, above it is one
        (lambda run: (TRAINED if run.rate == 4 * LOW else STUCK, 0.5), [4 * LOW, 8 * LOW]),
        (lambda run: (DIVERGED, 0.1), [LOW / 2, LOW]),  # the rate below is made too
        (lambda run: (TRAINED, 0.5), [1024 * LOW, 2048 * LOW]),  # it ends somewhere
    ],
)
def test_where_a_failure_is(outcome: Outcome, around: list[float]) -> None:
    runs = _all(outcome)
    assert SCHEDULE.around({run: _result(run, *outcome(run)) for run in runs}) == around
    repeated = {run.rate for run in runs if run.seed == 2}
    assert set(around) <= repeated


def test_the_best_rate_is_chosen_on_validation_among_those_with_all_seeds() -> None:
    def result(rate: float, seed: int, test: float, validation: float) -> RunResult:
        run = Run(LN, rate, seed)
        return RunResult(run, TRAINED, [1.0], 1.0, test, validation, 1.0, 1.0)

    results = [result(0.1, seed, 0.5, 0.8) for seed in range(3)]
    results += [result(0.2, seed, 0.9, 0.7) for seed in range(3)]  # better on the test alone
    results += [result(0.3, 0, 0.9, 0.99)]  # one seed
    results += [_result(Run(LN, 0.2, 0, CLIP), TRAINED, 1.0)]  # no plain run
    best = at_best_rate(results, LN)
    assert (best.rate, best.accuracies, best.seeds) == (0.1, [50.0] * 3, [0, 1, 2])
    results += [_result(Run(BN, 0.4, seed), TRAINED, 0.6) for seed in (1, 0)]
    gap = difference(results, BN, LN)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((10, 10, 10))


def test_no_run_begins_that_would_not_end_in_time() -> None:
    found = {
        Run(LN, 0.1, 0): _result(Run(LN, 0.1, 0), TRAINED, 0.5, 100.0),
        Run(LN, 0.2, 0): _result(Run(LN, 0.2, 0), TRAINED, 0.5, 300.0),
        Run(BN, 0.1, 0): _result(Run(BN, 0.1, 0), TRAINED, 0.5, 400.0),
        Run(BN, 0.2, 0): _result(Run(BN, 0.2, 0), DIVERGED, 0.1, 1.0),  # says nothing of others
    }
    budget = Budget(hours=1)

    def last(run: Run) -> int:
        return max(second for second in range(3601) if budget.fits(run, found, second))

    assert last(Run(LN, 0.3, 0)) == 3600 - 200
    assert last(Run(BN, 0.3, 0)) == 3600 - 400
    assert last(Run(FFN_BN, 0.3, 0)) == 3600 - 267
    assert last(Run(LN, 0.3, 0, CLIP)) == 3600 - 267
    assert last(Run(LN, 0.3, 0, BFLOAT16)) == 3600 - 534  # twice the mean
    found[Run(BN, 0.1, 0, BFLOAT16)] = _result(Run(BN, 0.1, 0, BFLOAT16), TRAINED, 0.5, 50.0)
    assert last(Run(LN, 0.3, 0, BFLOAT16)) == 3600 - 50
    assert budget.fits(Run(LN, 0.1, 0), {}, 3600)  # nothing was measured
    assert Budget(None).fits(Run(LN, 0.3, 0), found, 1e9)


def test_a_grid_has_every_run_once() -> None:
    grid = Grid((LN, BN), (0.1, 0.2), 2)
    due = grid.due({})
    assert len(set(due)) == len(due) == 8
    assert [run.seed for run in due] == [0] * 4 + [1] * 4
    found = {run: _result(run, TRAINED, 0.5) for run in due[:3]}
    assert grid.due(found) == due[3:]
