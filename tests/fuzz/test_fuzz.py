"""A short run of the fuzzer, and that it sees what it looks for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.effort import SEED
from tests.fuzz import run
from tests.fuzz.seeds import Seed, seeds

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_a_short_run(tmp_path: Path) -> None:
    made = seeds(("onnx", "data"), many=False)
    findings = run.fuzz(made, range(60), SEED, save=tmp_path)
    assert not findings.wrong, (findings.wrong, findings.first, SEED)
    assert findings.counts["rewritten"]


def _hang() -> str:
    while True:
        pass


def _crash() -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return ""


def test_it_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [
        lambda: "refused",
        _crash,
        lambda: "traceback: KeyError in x.py:f",
        _hang,
        lambda: str(np.zeros(1 << 40)),
        lambda: "rewritten",
    ]

    def trial(_: str, path: Path) -> str:
        try:
            return outcomes[int(path.read_bytes())]()
        except MemoryError:
            return "memory"

    class _Plain(Seed):
        def mutant(self, random: np.random.Generator) -> dict[str, bytes]:
            return {"m.onnx": str(next(numbers)).encode()}

    monkeypatch.setattr(run, "trial", trial)
    monkeypatch.setattr(run, "_CPU_SECONDS", 0.5)
    monkeypatch.setattr(run, "_TOGETHER", 1)
    numbers = iter([])
    findings = run.Findings()
    for number in range(len(outcomes)):
        numbers = iter([number] * 3)
        findings.counts += run.fuzz([_Plain("onnx", "x", {"m.onnx": b""})], [number], 0).counts
    assert findings.counts == dict.fromkeys(
        ["refused", "signal SIGSEGV", "traceback: KeyError in x.py:f", "CPU time", "memory"]
        + ["rewritten"], 1,
    )  # fmt: skip
