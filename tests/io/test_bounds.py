"""Data, images, configs and shards that are no files, that inflate, or that ask for too much."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import normswap as ns
from normswap import NormswapError
from normswap.io.data import load_data
from normswap.io.preprocessing import Preprocessing
from normswap.io.sources.huggingface import huggingface_source
from normswap.model import Model
from normswap.train.sharded_data import shard_samples
from tests.zoo.exports import zoo_model


@pytest.fixture(scope="module")
def model() -> Model:
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 3)).eval()
    known = Preprocessing("RGB", (0.5,) * 3, (0.5,) * 3, resize="squash", size=(4, 4))
    loaded = ns.load(net, example_inputs=(torch.randn(2, 3, 4, 4),))
    return replace(loaded, preprocessing=known)


def _npz(path: Path, parts: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _huge_header() -> bytes:
    whole = _npy(np.zeros((2, 3, 4, 4), np.float32))
    return whole.replace(b"(2, 3, 4, 4)", b"(9999999999,)")


PARTS: dict[str, bytes] = {
    "no array": b"hello",
    "empty": b"",
    "cut short": _npy(np.zeros((2, 3, 4, 4), np.float32))[:-9],
    "a huge header": _huge_header(),
    "objects": _npy(np.zeros((2, 3), "V3"))[:60],
}


@pytest.mark.parametrize("what", PARTS)
def test_damaged_parts_of_an_npz(model: Model, tmp_path: Path, what: str) -> None:
    path = _npz(tmp_path / "data.npz", {"x.npy": PARTS[what], "labels.npy": _npy(np.zeros(2))})
    with pytest.raises(NormswapError, match=str(path)):
        load_data(path, model)
    path = _npz(tmp_path / "named.npz", {"x": PARTS["no array"]})
    with pytest.raises(NormswapError, match="its part x is no array"):
        load_data(path, model)


def test_an_npz_that_inflates(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normswap.io.bounds._INFLATED", 1 << 22)
    path = tmp_path / "data.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as part,
    ):
        part.write(_npy(np.zeros((2, 3, 4, 4), np.float32)))
        part.write(bytes(1 << 23))
    with pytest.raises(NormswapError, match=r"data.npz: holds 0\.0 GiB in"):
        load_data(path, model)
    packed = _npz(tmp_path / "lzma.npz", {"x.npy": PARTS["cut short"]}, zipfile.ZIP_LZMA)
    with pytest.raises(NormswapError, match="packed in a way"):
        load_data(packed, model)


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.pt", "m"])
def test_pipes_and_devices_for_a_model(tmp_path: Path, name: str) -> None:
    for path in (_fifo(tmp_path / name), tmp_path / f"link-{name}"):
        if not path.exists():
            path.symlink_to("/dev/zero")
        with pytest.raises(NormswapError, match=str(path)):
            ns.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_for_data(model: Model, tmp_path: Path) -> None:
    for name in ("d.npy", "d.npz", "d.safetensors"):
        with pytest.raises(NormswapError, match=name):
            load_data(_fifo(tmp_path / name), model)
    folder = tmp_path / "images"
    folder.mkdir()
    _fifo(folder / "a.png")
    with pytest.raises(NormswapError, match="not a regular file"):
        load_data(folder, model)
    with pytest.raises(NormswapError, match="shard"):
        shard_samples(str(_fifo(tmp_path / "s.tar")), model, 2, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "vit"
    zoo_model("hf_vit").module.model.save_pretrained(made)
    return made


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_in_a_hugging_face_folder(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        _fifo(folder / name)
        with pytest.raises(NormswapError, match=str(folder)):
            huggingface_source(str(folder))
        (folder / name).unlink()
        (folder / name).write_bytes(kept)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1000),
        ("hidden_size", 10**6),
        ("intermediate_size", 10**9),
        ("image_size", 10**6),
        ("image_size", [8, 8, 8]),
        ("image_size", -8),
        ("num_labels", 10**9),
        ("num_channels", 10**8),
        ("num_hidden_layers", 1e300),
    ],
)
def test_what_a_config_may_ask(folder: Path, key: str, value: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(NormswapError, match=str(folder)):
        ns.load(folder)


@pytest.mark.parametrize("size", [10**9, 1e300, 0, "a", [1, 2, 3]])
@pytest.mark.parametrize("key", ["size", "crop_size"])
def test_what_a_preprocessing_may_ask(folder: Path, key: str, size: object) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "do_center_crop": True}
    config |= {"size": {"height": 8, "width": 8}, "crop_size": {"height": 8, "width": 8}}
    config[key] = {"height": size, "width": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    try:
        loaded = ns.load(folder)
        load_data(np.zeros((2, 8, 8, 3), np.uint8), loaded)
    except NormswapError as error:
        line = str(error)
        assert "\n" not in line


def _tar(path: Path, parts: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def _cut(content: bytes) -> bytes:
    return content[:2000]


SHARDS: dict[str, dict[str, bytes]] = {
    "damaged array": {"a.input_1.npy": b"\x93NUMPY nonsense"},
    "no array": {"a.input_1.npy": b"hello"},
    "objects": {"a.input_1.npy": PARTS["objects"]},
    "other shapes": {
        "a.input_1.npy": _npy(np.zeros((3, 4, 4))),
        "b.input_1.npy": _npy(np.zeros((3, 5, 4))),
    },
    "damaged image": {"a.png": _png()[:30]},
    "no label": {"a.png": _png(), "a.cls": b"dog"},
    "a huge label": {"a.png": _png(), "a.cls": b"9" * 30},
}


@pytest.mark.parametrize("what", SHARDS)
def test_damaged_shards(model: Model, tmp_path: Path, what: str) -> None:
    pytest.importorskip("webdataset")
    path = _tar(tmp_path / "s.tar", SHARDS[what])
    with pytest.raises(NormswapError, match=r"s\.tar"):
        shard_samples(str(path), model, 2, None)


@pytest.mark.parametrize("what", SHARDS)
def test_good_samples_of_damaged_shards(model: Model, tmp_path: Path, what: str) -> None:
    pytest.importorskip("webdataset")
    pictures = any(name.endswith(".png") for name in SHARDS[what])
    good = {"z.png": _png()} if pictures else {"z.input_1.npy": _npy(np.zeros((3, 4, 4)))}
    label = {"z.cls": b"2"} if "label" in what else {}
    path = _tar(tmp_path / "s.tar", SHARDS[what] | good | label)
    found = shard_samples(str(path), model, 3, None, skip_bad=True).some
    assert found.count == (2 if what == "other shapes" else 1)  # one of the two is the model's
    assert (found.labels is not None) == bool(label)


@pytest.mark.parametrize("change", [lambda c: c[:700], lambda c: c[:300] + b"?" * 900, _cut])
def test_shards_that_are_cut(
    model: Model, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    pytest.importorskip("webdataset")
    path = _tar(tmp_path / "s.tar", {"a.input_1.npy": _npy(np.zeros((3, 40, 40)))})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(NormswapError, match=r"s\.tar"):
        shard_samples(str(path), model, 2, None)


def test_a_shard_that_inflates(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.input_1.npy")
        info.size = 1 << 40
        archive.fileobj.write(info.tobuf())
    with pytest.raises(NormswapError, match=r"s.tar: (holds|is no tar file)"):
        shard_samples(str(path), model, 2, None)
