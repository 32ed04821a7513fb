"""Files of weights: ``timm:NAME?checkpoint=FILE``, and FILE with ``arch="timm:NAME"``."""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import normswap as ns
from normswap import NormswapError
from normswap.io.load import takes_arch
from normswap.io.preprocessing import Unsupported
from normswap.io.sources.checkpoint import read_state_dict
from normswap.io.sources.options import split_options
from normswap.io.sources.packages import ensure_torchvision_importable
from normswap.io.sources.timm import timm_source
from normswap.io.torch_model import named_source, source_of_weights

ensure_torchvision_importable()
timm = pytest.importorskip("timm")

ARCH = "timm:test_vit"
_TUNED = {"num_classes": 5, "img_size": 32}
_TUNED_ARCH = f"{ARCH}?num_classes=5&img_size=32"


@pytest.fixture(scope="module")
def tuned() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_vit", **_TUNED).eval()


@pytest.fixture(scope="module")
def file(tuned: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tuned+1.pth"
    torch.save(tuned.state_dict(), path)
    return path


def error_of(load: Callable[..., object], *args: Any, **options: Any) -> str:
    with pytest.raises(NormswapError) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- loading -------------------------------------------------------------------------------------


def test_both_ways_give_the_model_of_the_file(tuned: nn.Module, file: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = tuned(images).numpy()
    model = ns.load(file, arch=_TUNED_ARCH)
    (found,) = model.run({model.inputs[0].name: images.numpy()}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert model.name == f"{file.name} ({ARCH})"
    assert isinstance(model.preprocessing, ns.Preprocessing)
    assert model.preprocessing.output_size == (32, 32)
    source = named_source(f"{ARCH}?checkpoint={file}&num_classes=5&img_size=32&pretrained=false")
    assert source.name == model.name
    with torch.no_grad():
        assert np.array_equal(source.module.eval()(images).numpy(), wanted)


def test_a_size_that_is_not_square() -> None:
    source = timm_source("test_vit?img_size=32x64&pretrained=false")
    assert source.args[0].shape == (2, 3, 32, 64)


def test_a_model_of_any_size_is_only_fed_at_that_size() -> None:
    source = timm_source("test_resnet?img_size=96&pretrained=false")
    assert source.args[0].shape == (2, 3, 96, 96)


def test_grey_images(tmp_path: Path) -> None:
    grey = timm.create_model("test_vit", in_chans=1)
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    source = source_of_weights(tmp_path / "grey.pth", f"{ARCH}?in_chans=1")
    assert source.args[0].shape == (2, 1, 160, 160)
    assert isinstance(source.preprocessing, ns.Preprocessing)  # its mean is one for all channels
    assert (source.preprocessing.mode, source.preprocessing.mean) == ("L", (0.5,))
    assert error_of(ns.load, tmp_path / "grey.pth", arch=f"{ARCH}?num_classes=7").endswith(
        "; try timm:test_vit?num_classes=1000&in_chans=1"
    )
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "colour.pth")
    message = error_of(ns.load, tmp_path / "colour.pth", arch=f"{ARCH}?in_chans=1")
    assert message.endswith("; try timm:test_vit?in_chans=3")


@pytest.mark.parametrize(("name", "channels"), [("resnet10t", 1), ("test_vit", 5)])
def test_channels_whose_mean_is_not_known(name: str, channels: int) -> None:
    source = timm_source(f"{name}?in_chans={channels}&img_size=64&pretrained=false")
    assert source.args[0].shape == (2, channels, 64, 64)
    assert isinstance(source.preprocessing, Unsupported)
    assert f"its images have {channels}" in source.preprocessing.reason


def test_the_error_without_arch_names_it(file: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth", "a.pt", "a.bin", "a.ckpt", "a.PTH"):
        (tmp_path / name).touch()
        assert "--arch timm:NAME" in error_of(ns.load, tmp_path / name)
        assert takes_arch(str(tmp_path / name))
    (tmp_path / "config.json").touch()
    assert f"or name the folder {tmp_path}" in error_of(ns.load, tmp_path / "a.bin")
    assert "cannot be 'vit'" in error_of(ns.load, file, arch="vit")
    assert "cannot be" in error_of(ns.load, file, arch=f"{ARCH}?checkpoint=other.pth")


def test_arch_is_for_files_of_weights_alone(tmp_path: Path, tuned: nn.Module) -> None:
    (tmp_path / "a.onnx").touch()
    (tmp_path / "folder.bin").mkdir()
    for source in (tmp_path / "a.onnx", tmp_path / "folder.bin", f"{ARCH}?checkpoint=a.pth", tuned):
        assert not takes_arch(source)
        assert "only a file of weights" in error_of(ns.load, source, arch=ARCH)


# -- options -------------------------------------------------------------------------------------


_OPTIONS = ("img_size", "in_chans", "num_classes")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("seed=1", "unknown option 'seed'; it takes pretrained, checkpoint, img_size, in_chans"),
        ("", "unknown option ''"),
        ("num_classes", "num_classes= is not a number"),
        ("num_classes=ten", "num_classes=ten is not a number"),
        ("num_classes=99999999", "is not a number up to"),
        ("img_size=0", "is not a size"),
        ("in_chans=0", "in_chans=0 is not a number from 1 to"),
        ("in_chans=1025", "is not a number from 1 to"),
        ("img_size=1x2x3", "is not a size"),
        ("pretrained=maybe", "is not true or false"),
        ("checkpoint=", "is not a file of weights"),
        ("num_classes=1&num_classes=2", "num_classes is given twice"),
    ],
)
def test_unknown_and_senseless_options(query: str, expected: str) -> None:
    message = error_of(split_options, f"vit?{query}", "timm:", *_OPTIONS)
    assert message.startswith("timm:vit: ")
    assert expected in message


def test_a_path_stands_as_it_is() -> None:
    _, options = split_options("vit?checkpoint=a+b%20?c=1.pth&pretrained=False", "timm:")
    assert options.checkpoint == Path("a+b%20?c=1.pth")
    assert not options.pretrained


# -- what is around the weights ------------------------------------------------------------------


def _wrapped(weights: dict[str, Any]) -> dict[str, Any]:
    old = {key: torch.zeros_like(value) for key, value in weights.items()}
    return {
        "plain": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights, "args": argparse.Namespace(lr=0.1)},
        "averaged": {"state_dict": old, "state_dict_ema": weights},
        "no average": {"state_dict": weights, "state_dict_ema": None},
        "distributed": {"model": {f"module.{k}": v for k, v in weights.items()}},
        "compiled": {f"module._orig_mod.{k}": v for k, v in weights.items()},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in weights.items()}},
        "parameters": {key: nn.Parameter(value) for key, value in weights.items()},
    }


@pytest.mark.parametrize("how", list(_wrapped({})))
def test_what_training_loops_put_around_weights(how: str, tmp_path: Path) -> None:
    weights = {"head.weight": torch.randn(3, 2), "head.bias": torch.randn(3)}
    torch.save(_wrapped(weights)[how], tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_half_precision_becomes_the_models_own(file: Path, tmp_path: Path) -> None:
    weights = {key: value.half() for key, value in torch.load(file).items()}
    safetensors.torch.save_file(weights, tmp_path / "half.safetensors")
    source = source_of_weights(tmp_path / "half.safetensors", _TUNED_ARCH)
    for key, value in source.module.state_dict().items():
        assert torch.equal(value, weights[key].float())


# -- weights that do not fit ---------------------------------------------------------------------


def _misfit(file: Path, tmp_path: Path, arch: str, **changes: torch.Tensor | None) -> str:
    weights = torch.load(file)
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    return error_of(ns.load, tmp_path / "a.safetensors", arch=arch)


def test_misfits_are_counted_and_the_options_suggested(file: Path, tmp_path: Path) -> None:
    message = _misfit(file, tmp_path, ARCH)
    assert "3 of its weights do not fit timm:test_vit, first 'pos_embed': float32 1x5x64" in message
    assert message.endswith("; try timm:test_vit?num_classes=5&img_size=32")
    message = _misfit(file, tmp_path, f"{ARCH}?img_size=32")
    assert "2 of its weights do not fit" in message
    assert message.endswith("; try timm:test_vit?num_classes=5&img_size=32")
    message = _misfit(file, tmp_path, f"{ARCH}?num_classes=5&img_size=32x64")
    assert message.endswith("; try timm:test_vit?num_classes=5&img_size=32")
    headless = _misfit(file, tmp_path, f"{ARCH}?img_size=32", head__weight=None, head__bias=None)
    assert "2 of the" in headless
    assert "are missing in it, first 'head.weight'" in headless
    assert headless.endswith("; try timm:test_vit?num_classes=0&img_size=32")


def test_weights_of_another_architecture(file: Path, tmp_path: Path) -> None:
    own = torch.zeros(2)
    message = _misfit(file, tmp_path, _TUNED_ARCH, extra=own)
    assert (
        "1 of its weights have no place in timm:test_vit, first 'extra'; name the arch" in message
    )
    message = _misfit(file, tmp_path, _TUNED_ARCH, norm__weight=None)
    assert "1 of the" in message
    assert "missing in it, first 'norm.weight'; name the architecture" in message
    message = _misfit(file, tmp_path, _TUNED_ARCH, norm__weight=torch.ones(64, dtype=torch.int8))
    assert "first 'norm.weight': int8 64, not float32 64" in message
    assert "name the architecture" in _misfit(file, tmp_path, ARCH, pos_embed=own.reshape(1, 1, 2))
    assert "name the architecture" in _misfit(file, tmp_path, "timm:test_resnet?num_classes=5")


# -- files that are none of this -----------------------------------------------------------------


class _Evil:
    def __reduce__(self) -> object:
        return os.system, ("touch run",)


def _zip_of(pickle: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/version", "3")
    return stream.getvalue()


def _bytearray_of(size: int) -> bytes:
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R."


def _saved(thing: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(thing, stream, **options)
    return stream.getvalue()


def _traced() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda: b"", "is empty"),
        (lambda: b"no zip", "is not a zip archive"),
        (lambda: _saved({"a": torch.ones(2)})[:-40], "is not a zip archive, or is truncated"),
        (
            lambda: _saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False),
            "if torch before 1.6 wrote it",
        ),
        (
            lambda: _saved({"a": torch.ones(2)}).replace(b"\0\0\x80\x3f", b"\0\0\x80\x40"),
            "checksum",
        ),
        (lambda: _saved(_Evil()), "holds a posix.system, and nothing but tensors"),
        (lambda: _saved({"a": torch.ones(2), "b": _Evil()}), "holds a posix.system"),
        (lambda: _saved(nn.Linear(2, 2)), "holds a torch.nn.modules.linear.Linear"),
        (lambda: _saved([torch.ones(2)]), "holds no weights by name"),
        (lambda: _saved({}), "holds no weights by name"),
        (lambda: _saved({"weights": {"a": torch.ones(2)}}), "its entry 'weights' is no tensor"),
        (lambda: _saved({"a": torch.ones(1).expand(10**9)}), "'a' is no plain tensor"),
        (lambda: _saved({"a": torch.ones(2, 2).to_sparse()}), "'a' is no plain tensor"),
        (lambda: _saved({"a": torch.ones(2, device="meta")}), "'a' is no plain tensor"),
        (_traced, "is a TorchScript program"),
        (lambda: _zip_of(b"\x80\x02cos\nsystem\n."), "holds a os.system|blocked|damaged"),
        (lambda: _zip_of(b"\x80\x02\x99"), "is damaged"),
        (lambda: _zip_of(b""), "is damaged"),
        (lambda: _zip_of(_bytearray_of(1 << 40)), "holds a bytearray"),
    ],
)
def test_files_of_other_things(
    content: Callable[[], bytes], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    path.write_bytes(content())
    with pytest.raises(NormswapError, match=f"^{path}: .*({expected})") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.pth"]


def _changed(old: bytes, new: bytes) -> bytes:
    """A file of one tensor of three numbers, its pickle changed."""
    stream = io.BytesIO()
    content = io.BytesIO(_saved({"a": torch.ones(3)}))
    with zipfile.ZipFile(content) as held, zipfile.ZipFile(stream, "w") as made:
        assert old in held.read("archive/data.pkl")
        for info in held.infolist():
            made.writestr(info.filename, held.read(info).replace(old, new))
    return stream.getvalue()


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    path, most = tmp_path / "a.pth", b"J\xff\xff\xff\x7f"
    path.write_bytes(_changed(b"K\x03t", most + b"t"))  # its storage
    assert read_state_dict(path)["a"].untyped_storage().nbytes() <= path.stat().st_size
    for size_or_offset in (b"K\x03\x85", b"QK\x00"):
        longer = size_or_offset.replace(b"K\x03", most).replace(b"K\x00", most)
        path.write_bytes(_changed(size_or_offset, longer))
        assert "is damaged" in error_of(read_state_dict, path)


def test_damaged_safetensors_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert "there is no such file" in error_of(read_state_dict, path)
    path.write_bytes(b"\xff" * 20)
    assert "is damaged" in error_of(read_state_dict, path)
    assert "is no file" in error_of(read_state_dict, tmp_path)
