"""What is made of the runs of a comparison: outcomes, statistics, findings, figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from normswap.train.study.figures import LOSSES, ONSETS, TIMES, write_figures
from normswap.train.study.groups import (
    at_best_rate,
    crashes,
    crashes_more,
    difference,
    highest_stable,
)
from normswap.train.study.results import AGREES, DISAGREES, OPEN, find
from normswap.train.study.runs import DIVERGED, STUCK, TRAINED, guessing_loss, outcome
from normswap.train.study.variants import BN, FFN_BN, LN, VARIANTS
from normswap.train.study.vitals import HIDDEN, LOSS, Onset, Vitals
from tests.train.made_up_runs import made_up, made_up_bench

LOW, HIGH = 0.001, 0.1
GUESSING = math.log(10)


@pytest.mark.parametrize(
    ("losses", "finished", "expected"),
    [
        ([2.4, 1.0, 0.1], True, TRAINED),
        ([2.4, 1.0, 0.1], False, DIVERGED),  # NaN came next
        ([2.4, 9.0, 2.5], True, DIVERGED),
        ([2.4, 9.0, 2.3], True, STUCK),  # it came back down, to guessing
        ([2.4, 9.0, 2.05], True, TRAINED),  # 0.9 * ln 10 = 2.07
        ([0.5, 0.4, 0.6], True, DIVERGED),  # below guessing, but above its start
        ([2.4, 0.1, math.inf], True, DIVERGED),
        ([], False, DIVERGED),
    ],
)
def test_how_a_run_ended(losses: list[float], finished: bool, expected: str) -> None:
    assert outcome(losses, finished, GUESSING) == expected


def test_the_end_of_a_run_is_its_last_tenth() -> None:
    """One bad batch at the very end is no crash."""
    losses = [2.4] + 98 * [0.1] + [19.0]
    assert outcome(losses, True, GUESSING) == TRAINED  # (9 * 0.1 + 19) / 10 = 1.99


def test_guessing_costs_the_entropy_of_the_labels() -> None:
    assert guessing_loss(np.repeat(np.arange(10), 7)) == pytest.approx(GUESSING)
    assert guessing_loss(np.array([0, 0, 0, 1])) == pytest.approx(0.5623, abs=1e-4)


def test_fishers_exact_test() -> None:
    """The lady who tasted tea: 3 of 4 against 1 of 4 is 17 of 70."""
    assert crashes_more((3, 4), (1, 4)) == pytest.approx(17 / 70)
    assert crashes_more((0, 16), (9, 16)) == pytest.approx(1)


def test_differences_are_taken_seed_by_seed_at_the_best_rates() -> None:
    runs = made_up(
        {
            (LN, LOW): [90.0, 92.0, 94.0],
            (LN, HIGH): [10.0, 10.0, 10.0],
            (BN, LOW): [50.0, 50.0, 50.0],
            (BN, HIGH): [91.0, 93.5, 94.5],
        }
    )
    assert at_best_rate(runs, BN).rate == HIGH
    gap = difference(runs, BN, LN)
    # gaps 1, 1.5, 0.5: mean 1, deviation 0.5; t(2) = 4.303
    assert gap.mean == pytest.approx(1)
    assert (gap.low, gap.high) == pytest.approx((1 - 1.2422, 1 + 1.2422), abs=1e-3)
    single = difference(made_up({(LN, LOW): [90.0], (BN, LOW): [91.0]}), BN, LN)
    assert (single.low, single.high) == (None, None)


def test_stable_ends_at_the_first_rate_with_a_crash() -> None:
    runs = made_up(
        {(LN, 0.1): [93.0, 93.0], (LN, 0.01): [93.0, None], (LN, 0.001): [90.0, 91.0]}
        | {(BN, 0.001): [50.0, 50.0], (BN, 0.01): [93.0, 93.0], (BN, 0.1): [80.0, 80.0]}
        | {(FFN_BN, 0.001): [None, 93.0]}
    )
    assert highest_stable(runs, LN) == 0.001
    assert highest_stable(runs, BN) == 0.01
    assert highest_stable(runs, FFN_BN) is None
    assert crashes(runs, LN) == (1, 6)


@pytest.mark.parametrize(
    ("ln", "bn", "ffn", "verdicts"),
    [
        # as published: BN crashes, the FFN BN repairs it, accuracy is equal
        ([93.0] * 8, [None] * 7 + [93.0], [93.1] * 8, [AGREES, AGREES, DISAGREES, AGREES]),
        # the other way round
        ([None] * 7 + [60.0], [95.0] * 8, [None] * 8, [DISAGREES, DISAGREES, DISAGREES, OPEN]),
        # nothing to see, or nearly
        ([93.0] * 8, [93.0] * 8, [93.0] * 8, [DISAGREES, OPEN, AGREES, AGREES]),
        ([93.0] * 8, [None] + [93.0] * 7, [93.0] * 8, [OPEN, OPEN, OPEN, AGREES]),
    ],
)
def test_findings_follow_the_numbers(
    ln: list[float | None],
    bn: list[float | None],
    ffn: list[float | None],
    verdicts: list[str],
) -> None:
    runs = made_up({(LN, LOW): ln, (BN, LOW): bn, (FFN_BN, LOW): ffn})
    found = find(runs, (LN, BN, FFN_BN), {})
    assert [finding.verdict for finding in found] == verdicts, found
    assert f"{crashes(runs, BN)[0]} of 8 runs of BN crashed" in found[0].text


def test_an_unfinished_study_claims_little() -> None:
    """Few runs without a crash refute nothing; accuracies are held against each other at a rate
    that both variants have."""
    runs = made_up({(LN, LOW): [93.0], (BN, LOW): [94.0], (FFN_BN, LOW): [95.0]})
    runs += made_up({(FFN_BN, HIGH): [60.0]})
    crash, ffn, *_ = find(runs, (LN, BN, FFN_BN), {})
    assert (crash.verdict, ffn.verdict) == (OPEN, OPEN)
    assert "too few runs to tell" in crash.text
    assert f"rate of both, {LOW:g}: BN 94.0 %, BN + FFN BN 95.0 %" in ffn.text


@pytest.mark.parametrize(
    ("statistics", "verdict"),
    [
        ([[HIDDEN], [HIDDEN], [LOSS]], AGREES),
        ([[HIDDEN, LOSS], [HIDDEN, LOSS], [LOSS]], OPEN),  # several at once show no order
        ([[LOSS], [LOSS], [HIDDEN]], DISAGREES),
        ([[HIDDEN], [HIDDEN]], OPEN),  # two are too few
    ],
)
def test_whether_crashes_begin_in_the_ffn(statistics: list[list[str]], verdict: str) -> None:
    crashes_of_bn: list[float | None] = [None] * len(statistics)
    runs = made_up({(BN, HIGH): crashes_of_bn, (LN, HIGH): [93.0] * len(statistics)})
    for index, first in enumerate(statistics):
        runs[index] = replace(runs[index], onset=Onset(10, first, []))
    (finding,) = [f for f in find(runs, (LN, BN), {}) if "explode first" in f.claim]
    assert finding.verdict == verdict, finding


@pytest.mark.parametrize(
    ("ratio", "verdict", "told"),
    [
        ((0.80, 0.78, 0.84), AGREES, "0.80 of LN's time"),
        ((0.95, 0.93, 0.97), DISAGREES, "by less than claimed"),
        ((0.99, 0.95, 1.04), DISAGREES, "no difference was shown"),
        ((0.90, 0.70, 1.20), OPEN, "no difference was shown"),
        ((1.20, 1.10, 1.30), DISAGREES, "slower"),
    ],
)
def test_findings_on_time(ratio: tuple[float, float, float], verdict: str, told: str) -> None:
    """In each runtime by its own LN, also where the report's first ratio is another's."""
    runs = made_up({(LN, LOW): [93.0], (BN, LOW): [93.0]})
    bench = made_up_bench({"torch": ratio, "onnxruntime": ratio})
    *_, torch, onnxruntime = find(runs, (LN, BN), {8: bench})
    for finding, runtime in ((torch, "torch"), (onnxruntime, "onnxruntime")):
        assert runtime in finding.claim
        assert finding.verdict == verdict
        assert told in finding.text


def test_figures_are_small_and_reproducible(tmp_path: Path) -> None:
    values: list[float | None] = [93.0, None, 91.0, 92.0]
    runs = made_up({(name, rate): values for name in VARIANTS for rate in (LOW, 0.01, 0.05, HIGH)})
    vitals = [Vitals(step, 2.0, 1.0, [1.0, None], None, None) for step in range(0, 400, 4)]
    crashed = next(r for r in runs if r.crashed and r.run.variant == BN)
    runs[runs.index(crashed)] = replace(crashed, vitals=vitals, onset=Onset(200, [HIDDEN], ["a"]))
    bench = made_up_bench({"torch": (0.9, 0.8, 40.0), "onnxruntime": (0.95, 0.94, 0.96)})
    names = write_figures(tmp_path, runs, tuple(VARIANTS), {1: bench, 8: bench})
    assert {f"{name}{suffix}" for name in names for suffix in (".svg", ".png")} == {
        path.name for path in tmp_path.iterdir()
    }
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    for name, content in first.items():
        assert ElementTree.fromstring(content).tag.endswith("svg")
        assert len(content) < 100_000, name
    again = write_figures(tmp_path, runs, tuple(VARIANTS), {})
    assert {ONSETS, TIMES} <= set(names)
    assert TIMES not in again
    assert (tmp_path / f"{LOSSES}.svg").read_bytes() == first[f"{LOSSES}.svg"]
