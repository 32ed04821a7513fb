"""``normswap bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from normswap import save
from normswap.extras import install_command
from normswap.runtimes.process import RUN_SECONDS
from normswap_cli.bench import bench
from normswap_cli.validate import validate
from tests.cli.conftest import Run
from tests.runtimes.models import one_node


@pytest.fixture
def models(tmp_path: Path) -> Path:
    save(one_node(), tmp_path / "a.onnx")
    save(one_node("Sigmoid"), tmp_path / "b.onnx")
    save(one_node("Fancy", "some.domain"), tmp_path / "unknown.onnx")
    save(one_node(columns=5), tmp_path / "wide.onnx")
    return tmp_path


def test_a_table_and_sentences(run: Run, models: Path) -> None:
    outcome = run("bench", models / "a.onnx", models / "b.onnx", "--rounds", 6)
    assert (outcome.status, outcome.err) == (0, "")
    assert "a.onnx in onnxruntime: what the others are held against\n" in outcome.out
    assert "\nb.onnx in onnxruntime: " in outcome.out
    assert "6 rounds in turn of x 1x4 float32; " in outcome.out
    assert "CPUExecutionProvider" in outcome.out


def test_json_with_one_that_fails(run: Run, models: Path) -> None:
    files = [models / "unknown.onnx", models / "a.onnx", models / "b.onnx"]
    outcome = run("bench", *files, "--rounds", 6, "--batch", 3, "--json")
    assert outcome.status == 1
    results = outcome.json["results"]
    assert [result["path"] for result in results] == [str(file) for file in files]
    assert "Fancy" in results[0]["error"]
    assert results[1]["ratio"] is None
    assert results[2]["ratio"]["verdict"] in ("faster", "slower", "no difference shown")
    assert outcome.json["inputs"] == {"x": "3x4 float32"}
    late = run("bench", models / "a.onnx", "--limit", 0.01)
    assert (late.status, late.err) == (1, "")
    assert "a.onnx: onnxruntime did not load it within 0.01 s; " in late.out
    failed = run("bench", models / "unknown.onnx")
    assert failed.status == 1
    assert "\nunknown.onnx: onnxruntime cannot load it: " in failed.out


def test_bad_input(run: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    differ = run("bench", models / "a.onnx", models / "wide.onnx").error
    assert "a.onnx's input 'x' and wide.onnx's 'x' differ" in differ
    assert "has no torch graph" in run("bench", models / "a.onnx", "--runtime", "torch").error
    assert "no such file" in run("bench", models / "missing.onnx").error
    monkeypatch.setitem(sys.modules, "openvino", None)
    missing = run("bench", models / "a.onnx", "--runtime", "openvino").error
    assert missing.endswith(install_command("openvino"))
    for usage in (["--rounds", 5], ["--batch", 0], ["--limit", 0], ["--runtime", "tvm"]):
        assert run("bench", models / "a.onnx", *usage).status == 2


@pytest.mark.parametrize("command", [bench, validate])
def test_the_limit_is_that_of_python(command: click.Command) -> None:
    (limit,) = (p for p in command.params if p.name == "limit")
    assert limit.default == RUN_SECONDS
