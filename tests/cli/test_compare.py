"""``normswap compare``: its options, what it prints, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normswap.extras import install_command
from normswap.train.study.results import GRID, Comparison, Options, find
from normswap.train.study.variants import BN, LN
from tests.cli.conftest import Run
from tests.cli.test_program import command_line, environment
from tests.effort import ALL
from tests.train.made_up_runs import STEPS, made_up, made_up_bench

RATES = [0.01, 0.1]


def _comparison() -> Comparison:
    fine: list[float | None] = [93.0, 92.0]
    groups = {(LN, 0.01): fine, (LN, 0.1): fine, (BN, 0.01): fine, (BN, 0.1): [93.0, None]}
    runs = made_up(groups)
    bench = made_up_bench({"torch": (0.9, 0.88, 0.92)})
    options = Options(GRID, "a model", "data", "0", 64, 16, 20, [LN, BN], RATES, 2, STEPS, 32)
    benches = {1: bench}
    found = find(runs, (LN, BN), benches)
    return Comparison(options, "a machine", {}, runs, 0, [], [], benches, found)


def test_options_and_what_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compare(folder: Path, model: object, **options: Any) -> Comparison:
        asked.append({"folder": folder, "model": model, **options})
        return _comparison()

    monkeypatch.setattr("normswap.compare", compare)
    given = ["--rates", "0.01, 0.1", "--seeds", "2", "--variants", "ln,bn", "-o", "made"]
    outcome = run("compare", *given, "--resume")
    assert outcome.status == 0
    (options,) = asked
    assert options["folder"] == Path("made")
    assert options["model"] is None
    assert (options["rates"], options["seeds"], options["resume"]) == (RATES, 2, True)
    assert options["variants"] == ["ln", "bn"]
    assert "1 of 4" in outcome.out
    assert "faster, but by less than claimed" in " ".join(outcome.out.split())
    assert "made/README.md" in outcome.out
    document = run("compare", *given, "--json").json
    assert document["schema"] == "normswap.comparison/2"
    assert document["difference_from_ln"].keys() == {BN}
    assert sum(result["outcome"] == "diverged" for result in document["runs"]) == 1


def test_bad_input(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    error = run("compare", "--data", "samples.npz", "-o", folder).error
    assert error == "compare: data is for a model of yours; name MODEL too"
    outcome = run("compare", "--rates", "fast", "-o", folder)
    assert outcome.status == 2
    assert "'fast' is not a list of numbers" in outcome.err
    assert not folder.exists()


@pytest.mark.skipif(not ALL, reason="trains in two processes: make test-all")
def test_no_warning_of_pythons_own_at_the_end(tmp_path: Path) -> None:
    args = ["compare", "-o", tmp_path / "study", "--variants", "ln,bn", "--rates", "0.002"]
    args += ["--seeds", "1", "--steps", "3", "--processes", "2"]
    done = subprocess.run(command_line(*args), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_without_matplotlib(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "normswap.train.study.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = run("compare", "-o", tmp_path / "made").error
    assert error == f"compare: its figures need matplotlib; {install_command('train')}"
    assert not list(tmp_path.iterdir())
