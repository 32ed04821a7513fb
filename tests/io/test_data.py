"""Data in every form that is taken, and one line for what is not."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from normswap.errors import NormswapError
from normswap.graph.onnx.graph import read_graph
from normswap.io import mapped
from normswap.io.data import Data, load_data
from normswap.model import InputSpec, Model
from normswap.train.options import TrainOptions
from normswap.train.sharded_data import shard_samples

IMAGES = np.random.default_rng(0).standard_normal((10, 1, 2, 2)).astype(np.float32)
IDS = np.arange(60).reshape(10, 6)
IMAGE_INPUT = (("batch", 1, 2, 2), np.float32)


def make_model(**inputs: tuple[tuple[int | str, ...], Any]) -> Model:
    """A model with these inputs (name: shape and dtype); nothing here runs it."""
    specs = [InputSpec(name, shape, np.dtype(dtype)) for name, (shape, dtype) in inputs.items()]
    graph = helper.make_graph(
        [helper.make_node("Shape", [spec.name], [f"{spec.name}_shape"]) for spec in specs],
        "graph",
        [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in specs],
        [helper.make_tensor_value_info(f"{s.name}_shape", TensorProto.INT64, None) for s in specs],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    outputs = tuple(f"{spec.name}_shape" for spec in specs)
    view = read_graph(ir.serde.deserialize_model(proto))
    return Model(view, "model.onnx", tuple(specs), outputs, {})


@pytest.fixture(scope="module")
def vit() -> Model:
    return make_model(pixel_values=IMAGE_INPUT)


@pytest.fixture(scope="module")
def clip() -> Model:
    return make_model(
        input_ids=(("texts", 6), np.int64), pixel_values=(("batch", 1, 2, 2), np.float32)
    )


def test_arrays_and_tensors_are_for_the_image_input(vit: Model, clip: Model) -> None:
    for model in (vit, clip):
        for source in (IMAGES, torch.from_numpy(IMAGES), IMAGES.astype(np.float64)):
            data = load_data(source, model)
            assert list(data.feeds) == ["pixel_values"]
            assert data.feeds["pixel_values"].dtype == np.float32
            assert np.array_equal(data.feeds["pixel_values"], IMAGES)
            assert data.count == 10
            assert data.labels is None


def test_the_image_input(vit: Model) -> None:
    tokens = make_model(ids=(("b", 6), np.int64), x=(("b", 3), np.float32))
    assert list(load_data(np.ones((2, 3)), tokens).feeds) == ["x"]
    text = make_model(ids=(("b", 6), np.int64))
    assert list(load_data(IDS.astype(np.int32), text).feeds) == ["ids"]
    texts = make_model(ids=(("b", 6), np.int64), mask=(("b", 6), np.int64))
    with pytest.raises(NormswapError, match="no image input; name the arrays: ids, mask"):
        load_data(IDS, texts)


def test_mappings(clip: Model) -> None:
    data = load_data({"pixel_values": IMAGES, "input_ids": IDS, "labels": np.arange(10)}, clip)
    assert set(data.feeds) == {"pixel_values", "input_ids"}
    assert data.labels is not None
    assert np.array_equal(data.labels, np.arange(10))
    assert load_data({"images": IMAGES.tolist()}, clip).feeds.keys() == {"pixel_values"}
    assert load_data({"input_ids": IDS}, clip).count == 10


def test_files(clip: Model, tmp_path: Path) -> None:
    arrays = {"pixel_values": IMAGES, "input_ids": IDS, "labels": np.arange(10)}
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", **arrays)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "c.NPZ.npz", IMAGES)
    save_file(arrays, tmp_path / "d.safetensors")
    for name in ("a.npy", "b.npz", "c.NPZ.npz", "d.safetensors"):
        data = load_data(tmp_path / name, clip)
        assert np.array_equal(data.feeds["pixel_values"], IMAGES)
        assert (data.labels is not None) is (name[0] in "bd")
        assert np.array_equal(load_data(str(tmp_path / name), clip).feeds["pixel_values"], IMAGES)


def test_bfloat16_in_safetensors(vit: Model, tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_tensors

    save_tensors({"pixel_values": torch.from_numpy(IMAGES).bfloat16()}, tmp_path / "x.safetensors")
    data = load_data(tmp_path / "x.safetensors", vit)
    assert np.abs(data.feeds["pixel_values"] - IMAGES).max() < 0.02


def test_iterables(clip: Model) -> None:
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.arange(10)), batch_size=4
    )
    feeds = (
        {"pixel_values": image, "input_ids": ids} for image, ids in zip(IMAGES, IDS, strict=True)
    )
    sources: list[Any] = [
        list(IMAGES), iter(IMAGES), [IMAGES[:4], IMAGES[4:]], [torch.from_numpy(i) for i in IMAGES],
        loader, list(zip(IMAGES, range(10), strict=True)), feeds,
    ]  # fmt: skip
    for source in sources:
        data = load_data(source, clip)
        assert np.array_equal(data.feeds["pixel_values"], IMAGES)
        if data.labels is not None:
            assert np.array_equal(data.labels, np.arange(10))
    assert load_data(loader, clip).labels is not None


def test_samples_are_a_fixed_random_subset(clip: Model, caplog: pytest.LogCaptureFixture) -> None:
    source = {"pixel_values": IMAGES, "input_ids": IDS, "labels": np.arange(10)}
    once, again = load_data(source, clip, samples=4), load_data(source, clip, samples=4)
    other = load_data(source, clip, samples=4, seed=1)
    assert once.labels is not None
    assert other.labels is not None
    assert once.count == len(once.labels) == 4
    assert np.array_equal(once.feeds["input_ids"], IDS[once.labels])
    assert np.array_equal(once.feeds["pixel_values"], again.feeds["pixel_values"])
    assert not np.array_equal(once.labels, other.labels)
    with caplog.at_level(logging.WARNING):
        assert load_data(source, clip, samples=99).count == 10
    assert "data: holds 10 samples, fewer than the 99 asked for; all are used" in caplog.text
    assert load_data(once, clip, samples=2).count == 2
    with pytest.raises(NormswapError, match="0 samples"):
        load_data(source, clip, samples=0)


def test_batches(clip: Model) -> None:
    data = load_data({"pixel_values": IMAGES, "input_ids": IDS}, clip)
    batches = list(data.batches(4))
    assert [len(feeds["input_ids"]) for feeds in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([f["pixel_values"] for f in batches]), IMAGES)


def test_only_the_chosen_samples_are_checked(vit: Model) -> None:
    images = IMAGES.copy()
    chosen = load_data(images, vit, samples=3).feeds["pixel_values"]
    images[~(images[:, None] == chosen).all((2, 3, 4)).any(1)] = np.nan
    assert load_data(images, vit, samples=3).count == 3


def test_casts(clip: Model) -> None:
    assert load_data({"input_ids": IDS.astype(np.int16)}, clip).feeds["input_ids"].dtype == np.int64
    narrow = make_model(ids=(("b", 6), np.int8), x=(("b", 2), np.float16))
    assert load_data({"ids": IDS}, narrow).feeds["ids"].dtype == np.int8
    pixels = make_model(x=(("b", 2), np.uint8))
    assert load_data(np.ones((3, 2), np.uint8), pixels).feeds["x"].dtype == np.uint8
    with pytest.raises(NormswapError, match="takes int8, got int64"):
        load_data({"ids": IDS * 100}, narrow)
    with pytest.raises(NormswapError, match="'x' has 1 NaN or infinite numbers"):
        load_data({"x": np.array([[1e6, 1]])}, narrow)


def test_large_arrays_are_mapped_from_a_file(
    clip: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", 50)
    monkeypatch.setattr(mapped, "_AT_ONCE", 60)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = {"pixel_values": IMAGES.astype(np.float64), "input_ids": IDS.astype(np.int32)}
    data = load_data(source, clip, samples=7)
    picked = data.feeds["input_ids"][:, 0] // 6
    assert np.array_equal(data.feeds["pixel_values"], IMAGES[picked])
    for array in data.feeds.values():
        base = array.base
        assert isinstance(base, np.memmap)
        assert type(array) is np.ndarray
    assert not list(tmp_path.iterdir())  # its file has no name
    data.feeds["pixel_values"][:] = 1
    too_large = {"input_ids": IDS + 2**40 * (IDS == 59), "pixel_values": IMAGES}
    with pytest.raises(NormswapError, match="takes int32, got int64"):
        load_data(too_large, make_model(input_ids=(("b", 6), np.int32), pixel_values=IMAGE_INPUT))
    with pytest.raises(NormswapError, match="'pixel_values' has 2 NaN or infinite"):
        load_data(np.where(np.isin(IMAGES, IMAGES[[3, 8], 0, 0, 0]), np.inf, IMAGES), clip)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="there is no way to reserve room")
def test_no_room_for_a_file(clip: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped, "IN_MEMORY", 50)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NormswapError, match=r"data: takes 0.0 GiB .*No space left.*set TMPDIR"):
        load_data(IMAGES.astype(np.float64), clip)


BAD_ARRAYS: list[tuple[Any, str]] = [
    (IMAGES.astype(np.uint8), r"takes float32, got uint8: scale the pixels"),
    (IMAGES.astype(np.int64), r"'pixel_values' takes float32, got int64"),
    (IMAGES.astype(str), r"takes float32, got str"),
    (IMAGES[..., :1], r"takes Nx1x2x2, got 10x1x2x1"),
    (IMAGES[0], r"takes Nx1x2x2, got 1x2x2"),
    (np.float32(3), r"data: .* float32"),
    (IMAGES[:0], r"data: holds no samples"),
    (np.where(IMAGES > 1, np.nan, IMAGES), r"'pixel_values' has \d+ NaN or infinite numbers"),
    ({"pixel_values": IMAGES, "input_ids": IDS[:9]}, r"differ: 10 of 'pixel_values', 9 of 'input"),
    ({"pixel_values": IMAGES, "labels": np.arange(9)}, r"differ: 10 of 'pixel_values', 9 of 'lab"),
    ({"pixel_values": IMAGES, "labels": np.ones(10)}, r"labels must be integers.*float64"),
    ({"pixel_values": IMAGES, "pixels": IMAGES}, r"'pixels' is not an input of model.onnx"),
    ({"input_ids": IDS + 0.5}, r"'input_ids' takes int64, got float64"),
    ({"pixel_values": "nonsense"}, r"differ|no samples"),
    ({"labels": np.arange(10)}, r"holds no array for any of input_ids, pixel_values"),
    ({}, r"holds no array"),
    ([], r"holds no array"),
    ([IMAGES[0], IMAGES[0, :, :1]], r"the arrays for 'pixel_values' do not join"),
    ([{"pixel_values": IMAGES[0]}, {"input_ids": IDS[0]}], r"item 1 holds input_ids, the others"),
    ([object()], r"data: holds object where an array belongs"),
    ([[1, [2, 3]]], r"data: is no array"),
    (3, r"data: takes arrays, files or an iterable, not int"),
]


@pytest.mark.parametrize(("source", "message"), BAD_ARRAYS, ids=[m[:30] for _, m in BAD_ARRAYS])
def test_bad_arrays(clip: Model, source: Any, message: str) -> None:
    with pytest.raises(NormswapError, match=message) as caught:
        load_data(source, clip)
    assert "\n" not in str(caught.value)


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "missing.npy", "does not exist"
    (folder / "data.csv").write_text("1,2")
    yield folder / "data.csv", r"is no data file: give a folder of images, or \.npy, "
    np.save(folder / "whole.npy", IMAGES)
    np.savez(folder / "whole.npz", pixel_values=IMAGES)
    save_file({"pixel_values": IMAGES}, folder / "whole.safetensors")
    for suffix in ("npy", "npz", "safetensors"):
        whole = (folder / f"whole.{suffix}").read_bytes()
        place = 90 if suffix == "npz" else 12
        damaged = {
            "empty": b"", "random": np.random.default_rng(0).bytes(999), "cut": whole[:-20],
            "head": whole[:9], "flipped": whole[:place] + b"\xff" * 12 + whole[place + 12 :],
        }  # fmt: skip
        for name, content in damaged.items():
            path = folder / f"{name}.{suffix}"
            path.write_bytes(content)
            yield path, "cannot be read|holds no array"
    objects = np.array([{}, None], object)
    np.save(folder / "objects.npy", objects, allow_pickle=True)
    np.savez(folder / "objects.npz", pixel_values=objects)
    yield folder / "objects.npy", "holds Python objects"
    yield folder / "objects.npz", "holds Python objects"
    (folder / "pickled.npy").write_bytes(pickle.dumps(IMAGES))
    yield folder / "pickled.npy", "no .npy file"
    np.savez(folder / "names.npz", a=IMAGES, b=IMAGES)
    yield folder / "names.npz", "'a' is not an input"


def test_bad_files(clip: Model, tmp_path: Path) -> None:
    for path, message in bad_files(tmp_path):
        with pytest.raises(NormswapError, match=message) as caught:
            load_data(path, clip)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_data_is_a_plain_value() -> None:
    data = Data({"x": IMAGES}, None)
    assert (data.count, data.labels) == (10, None)


def test_token_types_are_zeros_where_texts_come_without(caplog: pytest.LogCaptureFixture) -> None:
    text: tuple[tuple[int | str, ...], Any] = (("texts", "length"), np.int64)
    bert = make_model(input_ids=text, attention_mask=text, token_type_ids=text)
    feeds = load_data({"input_ids": IDS}, bert, samples=4).feeds
    assert list(feeds) == ["input_ids", "token_type_ids"]
    assert feeds["token_type_ids"].dtype == np.int64
    assert np.array_equal(feeds["token_type_ids"], np.zeros((4, 6)))
    told = [record.message for record in caplog.records if "token_type_ids" in record.message]
    assert told == ["data: holds no token_type_ids; zeros are taken, as for texts of one sentence"]
    given = load_data({"input_ids": IDS, "token_type_ids": IDS % 2}, bert).feeds
    assert np.array_equal(given["token_type_ids"], IDS % 2)
    assert list(load_data({"attention_mask": IDS}, bert).feeds) == ["attention_mask"]
    assert list(load_data({"input_ids": IDS}, make_model(input_ids=text)).feeds) == ["input_ids"]


def test_shards_without_token_types_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text: tuple[tuple[int | str, ...], Any] = (("texts", "length"), np.int64)
    bert = make_model(input_ids=text, token_type_ids=text)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number in range(4):
            buffer = io.BytesIO()
            np.save(buffer, IDS[number])
            info = tarfile.TarInfo(f"{number}.input_ids.npy")
            info.size = len(buffer.getvalue())
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    samples = shard_samples(str(tmp_path / "s.tar"), bert, 2, None)
    assert not samples.some.feeds["token_type_ids"].any()
    batches = samples.batches(TrainOptions(steps=2, batch=2, learning_rate=1e-3, warm_up=0))
    assert [batches(step)["token_type_ids"].shape for step in range(2)] == [(2, 6)] * 2
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 's.tar'}: holds no token_type_ids; zeros are taken, as for texts of one "
        "sentence"
    ]
