"""``--dtype``: what the commands write in half precision, and what they say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normswap import load
from normswap.graph.graph import is_floating
from tests.cli.conftest import Run


def dtypes(path: Path) -> set[str]:
    values = load(path).graph.values()
    return {v.dtype.name for v in values if v.dtype is not None and is_floating(v.dtype)}


def test_swap(run: Run, files: Path, tmp_path: Path) -> None:
    model, out = files / "spelled-out.onnx", tmp_path / "half.onnx"
    told = run("swap", model, "-o", out, "--to", "fused", "--dtype", "float16", "--half-io")
    assert told.status == 0
    assert "float16: no islands of float32" in told.out
    assert dtypes(out) == {"float16"}
    assert load(out).history[-1].name == "conversion to float16"
    compared = run("validate", model, out, "--contract", "approximate", "--json")
    assert compared.status == 0, compared.out
    assert compared.json["outputs"][0]["cosine_worst"] > 0.999
    assert run("validate", model, out, "--simulate", "float16").status == 0
    assert "differ: float32 and float16" in run("validate", model, out).error


def test_islands_are_listed(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    model = files / "spelled-out.onnx"
    told = run("swap", model, "-o", out, "--to", "fused", "--sites", "role=pre_mlp", "--json",
               "--dtype", "float16", "--keep", "*layernorm_before", "--overflow-data",
               files / "images.npz")  # fmt: skip
    islands = told.json["conversion"]["islands"]
    assert [island["reason"] for island in islands[:2]] == ["asked for"] * 2
    assert "1e-12" in islands[2]["reason"]
    assert "is 0 in float16" in islands[2]["reason"]
    assert dtypes(out) == {"float16", "float32"}


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_export(run: Run, files: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"half.{suffix}"
    told = run("export", files / "vit.pt2", "-o", out, "--dtype", "float16")
    assert told.status == 0
    assert f"wrote {out}" in told.out
    assert dtypes(out) == {"float16", "float32"}
    images = np.load(files / "images.npz")["images"]
    before, after = load(files / "vit.pt2"), load(out)
    [wanted] = before.run({before.inputs[0].name: images}).values()
    [found] = after.run({after.inputs[0].name: images}).values()
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_bad_usage(run: Run, files: Path, tmp_path: Path) -> None:
    model, out = files / "vit.pt2", tmp_path / "half.pt2"
    refused = run("export", model, "-o", out, "--half-io")
    assert refused.status == 2
    assert "belong to --dtype" in refused.err
    nothing = run("export", model, "-o", out, "--dtype", "float16", "--keep", "nothing")
    assert "keep 'nothing' matches no norm" in nothing.error
    assert not out.exists()
