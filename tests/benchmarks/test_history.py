"""Results of benchmarks are kept, drawn over time, and what got worse is named."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import fit_cost, locating_cost, tool, validate_cost
from benchmarks.history.__main__ import main
from benchmarks.history.record import (
    Figure,
    Record,
    add_record_option,
    records,
    write_record,
)


def _kept(folder: Path, day: int, machine: str = "one", **seconds: list[float]) -> None:
    figures = {name: Figure.of(values, "s").__dict__ for name, values in seconds.items()}
    run = Record(
        "tool", f"2026-12-{day:02d}T08:00:00+00:00", f"c{day}", False, "python", machine, 2,
        {"torch": f"2.{day}"}, {},
    )  # fmt: skip
    content = {"schema": "normswap.benchmark/1", **run.__dict__, "figures": figures}
    (folder / f"{machine}-{day}.json").write_text(json.dumps(content))


def test_what_got_worse_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _kept(tmp_path, 1, slower=[1, 1, 1], noisy=[1, 2, 3], better=[4, 4, 4], little=[1, 1, 1])
    _kept(tmp_path, 2, slower=[9, 9, 9], noisy=[2, 3, 4], better=[2, 2, 2], little=[1.04] * 3)
    _kept(tmp_path, 3, slower=[9, 9, 9.1], noisy=[2, 3, 4], better=[2, 2, 2], little=[1.04] * 3)
    _kept(tmp_path, 1, "another", slower=[0.1] * 3)
    assert main(["--folder", str(tmp_path)]) == 0  # the last against the one before it
    told = capsys.readouterr().out
    assert "none of 4 figures got worse" in told
    assert "tool, another, 2 threads: 2026-12-01 08:00 (c1), the only run" in told
    (tmp_path / "one-3.json").unlink()
    picture = tmp_path / "history.png"
    assert main(["tool", "--folder", str(tmp_path), "-o", str(picture)]) == 1
    told = capsys.readouterr().out
    assert "| slower | 1 (1 to 1) s | 9 (9 to 9) s | 9.00 | worse |" in told
    assert "other versions: torch 2.1 to 2.2" in told
    assert not any(f"| {name}" in told for name in ("noisy", "better", "little"))
    assert main(["--folder", str(tmp_path), "--all"]) == 1
    told = capsys.readouterr().out
    assert "| 0.50 | better |" in told
    assert told.count("| as it was |") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_record_option(parser)
    assert parser.parse_args([]).record is None
    options = parser.parse_args(["--record", str(tmp_path / "made")])
    monkeypatch.setattr(sys, "argv", ["x", "--rounds", "3"])
    figures = {"inline: swap: time": Figure.of([3.0, 1.0, 2.0], "s")}
    write_record(None, "tool", figures)
    write_record(options.record, "tool", figures)
    (run,) = records(tmp_path / "made")
    assert (run.benchmark, run.figures) == ("tool", figures)
    assert run.command == "python -m benchmarks.tool --rounds 3"
    assert {"python", "torch", "onnxruntime"} <= run.versions.keys()
    assert "processors" in run.machine


def test_a_file_that_is_no_record(tmp_path: Path) -> None:
    for content in ("{", "[]", "{}", '{"schema": "other"}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(SystemExit, match=r"x\.json: is no record of a benchmark"):
            records(tmp_path)
    (tmp_path / "x.json").unlink()
    with pytest.raises(SystemExit, match="there is no record"):
        main(["--folder", str(tmp_path)])


def test_figures_are_called_by_what_was_measured() -> None:
    row = {"layout": "inline", "tool": "swap", "seconds": [1.0, 2.0, 3.0], "mib": [10, 20, 30]}
    failed = row | {"tool": "other", "seconds": [], "mib": []}
    found = tool.figures([row, failed])
    assert found["inline: swap: time"] == Figure(2.0, 1.5, 2.5, "s")
    assert list(found) == ["inline: swap: time", "inline: swap: memory"]
    located = {"graph": "onnx", "depth": 6, "load_s": 1.0, "locate_runs_s": [1.0], "located_mib": 9}
    assert "onnx 6: locate" in locating_cost.figures([located])
    cost = {"seconds": 1.0, "mib": 5.0, "error": ""}
    both = {"model": "vit_b", "swap": cost, "validate": cost | {"error": "exit 1"}}
    assert list(validate_cost.figures([both])) == ["vit_b: swap: time", "vit_b: swap: memory"]
    rounds = [{"ratio": 2.0, "fit_mib": 7.0}]
    assert "affine: ratio" in fit_cost.figures([{"fit": "affine", "rounds": rounds}])
