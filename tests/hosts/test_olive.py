"""Olive workflows with normswap's passes; run where the package olive-ai is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import normswap as ns
from normswap.assets import digits
from normswap.errors import NormswapError
from normswap.io.sources.packages import ensure_torchvision_importable
from normswap.io.torch_model import onnx_from_torch

ensure_torchvision_importable()
workflows = pytest.importorskip("olive.workflows", reason="olive-ai is not installed")
olive = pytest.importorskip("normswap.hosts.olive")
_EXAMPLE = Path(__file__).parents[2] / "examples" / "olive" / "clip.json"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("olive") / "clip.onnx"
    ns.save(ns.load(onnx_from_torch(ns.load(digits.DIGITS_CLIP))), path)
    return path


def _run(clip: Path, folder: Path, passes: dict[str, Any]) -> Path:
    """The model that a workflow like the example's leaves, with other passes."""
    config = json.loads(_EXAMPLE.read_text(encoding="utf-8"))
    config["input_model"]["model_path"] = str(clip)
    config["output_dir"], config["cache_dir"] = str(folder / "out"), str(folder / "cache")
    config["passes"] = passes or config["passes"]
    for options in config["passes"].values():
        if options.get("data") == "digits.npz":
            options["data"] = str(folder / "digits.npz")
            np.savez(options["data"], pixel_values=digits.load_digits_split().train_images[:64])
    output = workflows.run(config, package_config=olive.package_config())
    return Path(output.get_best_candidate().model_path)


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")


def test_the_example(clip: Path, tmp_path: Path) -> None:
    """From the original to a CLIP without LayerNorm, in one file."""
    before = _operators(clip)
    path = _run(clip, tmp_path, {})
    operators = _operators(path)
    assert before["LayerNormalization"] > 20
    assert not operators["LayerNormalization"]
    assert operators["Sqrt"] == before["LayerNormalization"]
    assert ns.validate(ns.load(clip), ns.load(path)).passed


def test_fitted_to_data_and_folded(clip: Path, tmp_path: Path) -> None:
    swap = {"type": "NormSwap", "to": "affine", "data": "digits.npz", "sites": "tower=image"}
    path = _run(clip, tmp_path, {"swap": swap, "fold": {"type": "NormFold"}})
    assert 0 < _operators(path)["LayerNormalization"] < _operators(clip)["LayerNormalization"]


def test_among_surgeries(clip: Path, tmp_path: Path) -> None:
    surgery = {"surgeon": "NormSwapSurgeon", "to": "lp"}
    passes = {"cut": {"type": "GraphSurgeries", "surgeries": [surgery]}}
    path = _run(clip, tmp_path, passes)
    assert _operators(path)["LpNormalization"] == _operators(clip)["LayerNormalization"]
    assert ns.validate(ns.load(clip), ns.load(path)).passed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"to": "batch"}, "to is 'batch', none of affine, "),
        ({"to": "lp", "options": {"order": 2}}, "'lp' has no option 'order'"),
        ({"to": "affine", "contract": "none"}, "needs"),
    ],
)
def test_bad_configs(clip: Path, tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(olive.WorkflowError, match=told):
        _run(clip, tmp_path, {"swap": {"type": "NormSwap", **options}})


def test_a_surgery_has_no_data() -> None:
    with pytest.raises(NormswapError, match="'affine' needs data; use the pass NormSwap"):
        olive.NormSwapSurgeon("affine")


def test_the_printed_package_config() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "normswap.hosts.olive"], capture_output=True, text=True, check=True
    )
    passes = json.loads(ran.stdout)["passes"]
    assert passes["NormSwap"]["module_path"] == "normswap.hosts.olive.NormSwap"
    assert "OnnxPeepholeOptimizer" in passes
