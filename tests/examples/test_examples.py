"""Each example of a pipeline does what its docstring says, and leaves only what it names."""

from __future__ import annotations

import re
import runpy
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from normswap.assets import digits
from tests.effort import thorough
from tests.zoo.exports import exported, zoo_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder that the CLIP example fills, and what it returns."""
    folder = tmp_path_factory.mktemp("clips")
    return folder, _main("clip_folder_to_onnx", folder)


def _files(folder: Path) -> dict[str, int]:
    """The files below ``folder`` and when they were written, without Python's own caches."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


@contextmanager
def _leaving_nothing() -> Iterator[None]:
    """The current and the temporary folder have to stay empty, the project's as they are."""
    before = _files(EXAMPLES), _files(digits.ASSETS)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
        assert not _files(Path(folder))
    assert (_files(EXAMPLES), _files(digits.ASSETS)) == before


def _main(example: str, *arguments: Any) -> Any:
    with _leaving_nothing():
        return runpy.run_path(str(EXAMPLES / f"{example}.py"))["main"](*arguments)


def _from_command_line(example: str, *arguments: Any) -> None:
    with _leaving_nothing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [example, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_before_onnx_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("swap_before_onnx_export", tmp_path) < 1e-5
    assert "5 LayerNorms became RMSNorms\n" in capsys.readouterr().out
    assert set(_files(tmp_path)) == {"vit-rmsnorm.onnx"}
    operators = _operators(tmp_path / "vit-rmsnorm.onnx")
    assert operators["RMSNormalization"] == 5
    assert not operators["LayerNormalization"]


def test_after_onnx_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _from_command_line("swap_after_onnx_export", tmp_path)
    told = capsys.readouterr().out
    assert "5 norms fused, " in told
    assert "LayerNormalization: 0 before, 5 after\n" in told
    assert float(told.split()[-1]) < 1e-5
    assert set(_files(tmp_path)) == {"vit.onnx"}
    operators = _operators(tmp_path / "vit.onnx")
    assert operators["LayerNormalization"] == 5
    assert not operators["ReduceMean"]


def test_among_onnx_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "vit.onnx", tmp_path / "out.onnx"
    onnx.save(exported("timm_vit", "torchscript-14"), source)
    _from_command_line("swap_among_onnx_passes", source, target)
    told = capsys.readouterr().out
    assert "5 norms written as one operator\n5 norms relieved of gamma and beta\n" in told
    assert told.endswith("the same function: True\n")
    assert set(_files(tmp_path)) == {source.name, target.name}
    graph = onnx.load(target).graph
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    gammas = {node.input[1] for node in norms}
    assert len(norms) == 5
    assert all((numpy_helper.to_array(t) == 1).all() for t in graph.initializer if t.name in gammas)
    counts = [int(found) for found in re.findall(r"has (\d+)", told)]
    assert counts == [_operators(source).total(), len(graph.node)]
    assert counts[0] > 1.5 * counts[1]
    feeds = {name: tensor.numpy() for name, tensor in zoo_model("timm_vit").inputs.items()}
    (wanted,), (got,) = (
        onnxruntime.InferenceSession(path).run(None, feeds) for path in (source, target)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_in_an_exported_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original, norm_free = _main("swap_in_exported_program", tmp_path)
    assert original == pytest.approx(0.972, abs=0.003)
    assert original - 0.015 < norm_free < 1
    assert f"0 LayerNorms, accuracy {norm_free:.1%}\n" in capsys.readouterr().out
    assert set(_files(tmp_path)) == {"vit-norm-free.pt2"}
    program = torch.export.load(tmp_path / "vit-norm-free.pt2")
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {getattr(target, "namespace", "aten") for target in called} == {"aten"}
    assert not any("norm" in str(target) for target in called)


@thorough
def test_clip_folder_to_onnx(clips: tuple[Path, Any]) -> None:
    folder, (exact, measured) = clips
    assert set(_files(folder)) == {"clip.onnx", "clip-norm-free.onnx"}
    assert exact.contract == "exact"
    assert exact.passed
    assert measured.contract == "approximate"
    assert measured.passed
    assert _operators(folder / "clip.onnx")["LayerNormalization"] == 14 + 9
    assert _operators(folder / "clip-norm-free.onnx")["LayerNormalization"] == 9
    cosines = {output.name: output.cosine_mean for output in measured.outputs}
    assert cosines["text_embeds"] == pytest.approx(1, abs=1e-6)
    assert 0.95 < cosines["image_embeds"] < 0.9999


@thorough
def test_classify_in_onnxruntime(
    clips: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = clips
    written = _files(folder)
    paths = [folder / "clip.onnx", folder / "clip-norm-free.onnx"]
    capsys.readouterr()
    _from_command_line("classify_in_onnxruntime", *paths)
    told = capsys.readouterr().out
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+)%", told)]
    assert accuracies[0] == pytest.approx(98.1, abs=0.3)
    assert accuracies[0] - 1.5 < accuracies[1] < 100
    assert "as clip.onnx in 100.0%\n" in told
    assert _files(folder) == written


def test_compile_with_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(EXAMPLES / "compile_with_kernels.py"))["main"]("eager") < 1e-4
    assert "the same class for 100.0%" in capsys.readouterr().out
