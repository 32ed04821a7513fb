"""Bad input: one line of error that names what is wrong, exit status 2, nothing written."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from normswap.extras import install_command
from tests.cli.conftest import Run

Refused = Callable[[object], str]


@pytest.fixture
def refused(run: Run, files: Path, tmp_path: Path) -> Refused:
    """The error for a MODEL, the same from every command that takes one; nothing is written."""
    folder = tmp_path / "written"
    folder.mkdir()

    def check(model: object) -> str:
        out = folder / "out.onnx"
        errors = {
            run("inspect", model).error,
            run("inspect", model, "--json").error,
            run("swap", model, "-o", out, "--to", "fused").error,
            run("fold", model, "-o", out).error,
            run("export", model, "-o", out).error,
            run("validate", files / "spelled-out.onnx", model).error,
            run("validate", model, files / "spelled-out.onnx").error,
        }
        assert not list(folder.iterdir())
        assert len(errors) == 1, errors
        return errors.pop()

    return check


@pytest.mark.parametrize("name", ["none.onnx", "none.pt2", "none.pt", "none", "no/none.onnx", ""])
def test_missing(refused: Refused, tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name else tmp_path / "no such folder"
    error = refused(path)
    assert error.startswith(f"{path}: ")
    assert "no such file or folder" in error


@pytest.mark.parametrize("content", ["empty", "truncated", "random"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".pth", ".safetensors", ".txt", ""])
def test_damaged(refused: Refused, files: Path, tmp_path: Path, content: str, suffix: str) -> None:
    whole = files / ("vit.pt2" if suffix == ".pt2" else "spelled-out.onnx")
    data = {
        "empty": b"",
        "truncated": whole.read_bytes()[: whole.stat().st_size // 2],
        "random": np.random.default_rng(0).bytes(5000),
    }[content]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    assert refused(path).startswith(f"{path}: ")
    assert path.read_bytes() == data


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_anywhere(run: Run, files: Path, tmp_path: Path, cut: int) -> None:
    for name in ("spelled-out.onnx", "vit.pt2"):
        path = tmp_path / name
        path.write_bytes((files / name).read_bytes()[:-cut])
        assert run("inspect", path).error.startswith(f"{path}: ")


def _external(files: Path, folder: Path) -> tuple[Path, onnx.ModelProto]:
    model = onnx.load(files / "spelled-out.onnx")
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path, onnx.load(path, load_external_data=False)


def test_external_data(run: Run, refused: Refused, files: Path, tmp_path: Path) -> None:
    path, model = _external(files, tmp_path)
    weights = tmp_path / "weights.bin"
    assert run("inspect", path).status == 0

    data = weights.read_bytes()
    weights.unlink()
    error = refused(path)
    assert str(path) in error
    assert "weights.bin" in error
    weights.write_bytes(data[:-100])
    error = refused(path)
    assert str(path) in error
    assert "weights.bin" in error
    weights.write_bytes(data)

    shutil.copy(weights, tmp_path / "written.bin")
    nested = tmp_path / "nested"
    nested.mkdir()
    for location in ("../weights.bin", str(weights)):
        for tensor in model.graph.initializer:
            entry = next(e for e in tensor.external_data if e.key == "location")
            entry.value = location
        (nested / "model.onnx").write_bytes(model.SerializeToString())
        assert str(nested / "model.onnx") in refused(nested / "model.onnx")


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pickled_module(refused: Refused, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"module{suffix}"
    torch.save(nn.LayerNorm(4), path)
    error = refused(path)
    assert str(path) in error
    assert "pickle" in error


class _Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_malicious_pt2(run: Run, refused: Refused, files: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bad.pt2"
    buffer = io.BytesIO()
    torch.save(((_Malice(marker),), {}), buffer)
    with zipfile.ZipFile(files / "vit.pt2") as whole, zipfile.ZipFile(path, "w") as bad:
        inputs = [n for n in whole.namelist() if "sample_inputs" in n]
        assert len(inputs) == 1
        for name in whole.namelist():
            bad.writestr(name, buffer.getvalue() if name in inputs else whole.read(name))
    error = refused(path)
    assert str(path) in error
    assert "--trust" in error
    assert not marker.exists()
    path.write_bytes(pickle.dumps(_Malice(marker)))
    assert str(path) in refused(path)
    assert not marker.exists()


def test_trust(run: Run, files: Path) -> None:
    assert run("inspect", files / "vit.pt2", "--trust", "--json").status == 0


def _break(folder: Path, what: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if what == "no config":
        config.unlink()
    elif what == "broken config":
        config.write_text("{")
    elif what == "unknown architecture":
        config.write_text('{"architectures": ["NoSuchModel"], "model_type": "no_such_model"}')
    elif what == "no weights":
        weights.unlink()
    elif what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "random weights":
        weights.write_bytes(np.random.default_rng(0).bytes(5000))
    elif what == "empty weights":
        weights.write_bytes(b"")


@pytest.mark.parametrize(
    "what",
    [
        "no config",
        "broken config",
        "unknown architecture",
        "no weights",
        "truncated weights",
        "random weights",
        "empty weights",
    ],
)
def test_hugging_face_folder(refused: Refused, files: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(files / "vit-folder", folder)
    _break(folder, what)
    assert str(folder) in refused(folder)


def test_empty_folder(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert str(folder) in refused(folder)


@pytest.mark.parametrize(
    "name", ["timm:no_such_model", "open_clip:no-such-model", "timm:", "open_clip:"]
)
def test_unknown_model_name(refused: Refused, name: str) -> None:
    assert name in refused(name)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "open_clip:ViT-B-32"])
def test_package_not_installed(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = name.partition(":")[0]
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(name)
    assert install_command("zoo") in error
    assert package in error


def test_transformers_not_installed(
    refused: Refused, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert install_command("zoo") in refused(files / "vit-folder")


@pytest.mark.parametrize(
    "output",
    [
        "spelled-out.onnx/a/out.onnx",
        "folder",
        "folder/out.txt",
        "folder/out",
        "spelled-out.onnx/out.onnx",
    ],
)
def test_output_that_cannot_be_written(
    run: Run, files: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("the output is looked at before any work")

    monkeypatch.setattr("normswap.load", never)
    monkeypatch.setattr("normswap.load", never)
    (tmp_path / "folder").mkdir()
    shutil.copy(files / "spelled-out.onnx", tmp_path)
    model, out = tmp_path / "spelled-out.onnx", tmp_path / output
    before = sorted(tmp_path.rglob("*"))
    for args in (["swap", "--to", "fused"], ["fold"], ["export"]):
        assert str(out) in run(args[0], model, "-o", out, *args[1:]).error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_read_only_output(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"kept")
    out.chmod(0o400)
    assert str(out) in run("export", files / "spelled-out.onnx", "-o", out).error
    assert out.read_bytes() == b"kept"
    tmp_path.chmod(0o500)
    assert str(tmp_path) in run("export", files / "vit.pt2", "-o", tmp_path / "new.onnx").error
    tmp_path.chmod(0o700)


def test_a_disk_that_fills_up(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    model = tmp_path / "model.onnx"
    shutil.copy(files / "spelled-out.onnx", model)
    before = model.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("normswap.io.atomic.os.fsync", full)
    assert str(model) in run("swap", model, "-o", model, "--to", "fused").error
    assert model.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
