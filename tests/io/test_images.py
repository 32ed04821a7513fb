"""Folders of images: which are taken, how they are prepared, their labels, and what is wrong."""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from PIL import Image

from normswap.assets.digits import DIGITS_VIT, load_digits_split
from normswap.errors import NormswapError
from normswap.graph.onnx.graph import read_graph
from normswap.io import images as image_reader
from normswap.io import mapped
from normswap.io.data import load_data
from normswap.io.images import folder_labels, list_images
from normswap.io.load import load
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.model import InputSpec, Model
from tests.io.pictures import picture, write_pictures
from tests.io.test_data import make_model

RGB = Preprocessing(
    "RGB", (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), resize="shortest", size=(9, 9), crop=(8, 8)
)


def image_model(
    known: Preprocessing | Unsupported | None = RGB,
    shape: tuple[int | str, ...] = ("batch", 3, 8, 8),
    dtype: Any = np.float32,
) -> Model:
    return replace(make_model(pixel_values=(shape, dtype)), preprocessing=known)


def classifier(classes: int, *outputs: str, texts: bool = False) -> Model:
    """A model with an output [batch, classes] of each name; nothing here runs it."""
    inputs = {"x": ("batch", 3, 8, 8)} | ({"y": ("batch", 2)} if texts else {})
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Flatten", ["x"], ["flat"]),
                *(helper.make_node("MatMul", ["flat", "w"], [name]) for name in outputs),
            ],
            "graph",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [helper.make_tensor("w", TensorProto.FLOAT, (192, classes), [0.0] * 192 * classes)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    specs = tuple(InputSpec(n, s, np.dtype(np.float32)) for n, s in inputs.items())
    view = read_graph(ir.serde.deserialize_model(proto))
    return Model(view, "classifier.onnx", specs, tuple(outputs), {}, RGB)


def write_digits(folder: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    for number, image in enumerate(images):
        pixels = np.rint((image[0] / 2 + 0.5) * 16).astype("u1")
        place = folder if labels is None else folder / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:04}.png")


# --- what is read ----------------------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    model, digits = load(DIGITS_VIT), load_digits_split()
    write_digits(tmp_path / "plain", digits.test_images, None)
    data = load_data(tmp_path / "plain", model)
    images = data.feeds["pixel_values"]
    assert (images.dtype, images.shape) == (np.float32, (540, 1, 8, 8))
    assert data.labels is None
    assert np.abs(images - digits.test_images).max() < 1e-6
    write_digits(tmp_path / "classes", digits.test_images, digits.test_labels)
    data = load_data(str(tmp_path / "classes"), model)
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    order = np.argsort(digits.test_labels, kind="stable")
    assert np.array_equal(data.labels, digits.test_labels[order])
    assert np.array_equal(data.feeds["pixel_values"], images[order])
    correct = model.run(data.feeds)["logits"].argmax(-1) == data.labels
    assert correct.mean() > 0.95


def test_every_kind_of_image_in_the_order_of_paths(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    (tmp_path / "README.md").write_text("of other kinds")
    (tmp_path / "._a0.png").write_text("what macOS leaves")
    write_pictures(tmp_path / "a0")
    write_pictures(tmp_path / ".cache")
    model = image_model()
    images = load_data(tmp_path, model).feeds["pixel_values"]
    assert list_images(tmp_path)[: len(paths)] == [Path("a0") / p.name for p in paths]
    assert images.shape == (2 * len(paths), 3, 8, 8)
    for image, path in zip(images[len(paths) :], paths, strict=True):
        with Image.open(path) as opened:
            assert np.array_equal(image, RGB.normalised(RGB.pixels(opened)))
    assert np.array_equal(images[: len(paths)], images[len(paths) :])
    half = load_data(tmp_path, image_model(dtype=np.float16)).feeds["pixel_values"]
    assert half.dtype == np.float16
    assert np.array_equal(half, images.astype(np.float16))


def test_suffixes_in_capitals_and_links(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    picture(9, 9).save(tmp_path / "data" / "A.PNG")
    picture(9, 9).save(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "c.png").symlink_to(tmp_path / "data" / "A.PNG")
    assert [p.as_posix() for p in list_images(tmp_path / "data")] == [
        "A.PNG",
        "c.png",
        "more/b.jpg",
    ]
    assert load_data(tmp_path / "data", image_model()).count == 3


def test_only_the_chosen_images_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(8):
        picture(9, 9, number).save(tmp_path / f"{number}.png")
    model = image_model()
    every = load_data(tmp_path, model).feeds["pixel_values"]
    some = load_data(tmp_path, model, samples=3).feeds["pixel_values"]
    chosen = [int(np.flatnonzero((every == image).all((1, 2, 3)))[0]) for image in some]
    assert chosen == sorted(chosen)
    assert np.array_equal(load_data(every, model, samples=3).feeds["pixel_values"], some)
    for number in set(range(8)) - set(chosen):
        (tmp_path / f"{number}.png").write_text("broken")
    assert np.array_equal(load_data(tmp_path, model, samples=3).feeds["pixel_values"], some)
    with caplog.at_level(logging.WARNING), pytest.raises(NormswapError, match="5 of 8 images"):
        load_data(tmp_path, model, samples=9)
    assert "holds 8 samples, fewer than the 9 asked for" in caplog.text


def test_progress(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    told: list[tuple[int, int, str]] = []
    threads = set()

    def progress(*step: Any) -> None:
        told.append(step)
        threads.add(threading.get_ident())

    load_data(tmp_path, image_model(), samples=5, progress=progress)
    assert told == [(number, 5, "reading images") for number in range(6)]
    assert threads == {threading.get_ident()}


def test_large_folders_are_mapped_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "images")
    (tmp_path / "scratch").mkdir()
    expected = load_data(tmp_path / "images", image_model()).feeds["pixel_values"]
    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    images = load_data(tmp_path / "images", image_model()).feeds["pixel_values"]
    assert isinstance(images.base, np.memmap)
    assert np.array_equal(images, expected)
    assert not list((tmp_path / "scratch").iterdir())


def test_an_interrupted_run_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "images")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))

    def interrupted(done: int, _total: int, _what: str) -> None:
        if done == 3:
            told.set()
            raise KeyboardInterrupt

    def slow(*given: Any) -> np.ndarray:
        read.append(given)
        if len(read) > 3:
            assert told.wait(60)
            time.sleep(0.5)  # the interrupt has as long, however busy the machine is
        return np.zeros((8, 8, 3), "u1")

    read: list[Any] = []
    told = threading.Event()
    monkeypatch.setattr(Preprocessing, "pixels", slow)
    monkeypatch.setattr(image_reader, "_workers", lambda: 1)
    running = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        load_data(tmp_path / "images", image_model(), progress=interrupted)
    assert len(read) < 17
    assert not list((tmp_path / "scratch").iterdir())
    assert threading.active_count() == running


def test_sizes_that_the_images_decide(tmp_path: Path) -> None:
    plain = Preprocessing("RGB", (0.0,) * 3, (1.0,) * 3)
    model = image_model(plain, ("batch", 3, "height", "width"))
    for number in range(3):
        picture(5, 7, number).save(tmp_path / f"{number}.png")
    images = load_data(tmp_path, model).feeds["pixel_values"]
    assert images.shape == (3, 3, 5, 7)
    assert np.abs(images[1] * 255 - np.asarray(picture(5, 7, 1)).transpose(2, 0, 1)).max() < 1e-4
    picture(7, 5).save(tmp_path / "3.png")
    with pytest.raises(NormswapError, match=r"1 of 4 .* 3.png .it becomes 3x7x5, and 3x5x7"):
        load_data(tmp_path, model)
    with pytest.raises(NormswapError, match=r"4 of 4 .*0.png: it becomes 3x5x7, and 3x5x7 is|3x5"):
        load_data(tmp_path, image_model(plain, ("batch", 3, 8, 8)))


def test_images_as_arrays() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 15, 3), "u1")
    images = load_data(pixels, image_model()).feeds["pixel_values"]
    assert images.shape == (6, 3, 8, 8)
    expected = RGB.normalised(RGB.pixels(Image.fromarray(pixels[4])))
    assert np.array_equal(images[4], expected)
    few = load_data({"pictures": pixels, "labels": np.arange(6)}, image_model(), samples=2)
    assert few.labels is not None
    assert np.array_equal(few.feeds["pixel_values"], images[few.labels])
    grey = image_model(Preprocessing("L", (0.5,), (0.5,), scale=1 / 16), ("batch", 1, 8, 8))
    levels = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1), "u1")
    assert load_data(levels, grey).feeds["pixel_values"][1, 0, 2, 3] == levels[1, 2, 3, 0] / 8 - 1
    with pytest.raises(NormswapError, match="got uint8: scale the pixels"):
        load_data(pixels, image_model(None))
    with pytest.raises(NormswapError, match="got uint8: scale the pixels"):
        load_data(pixels.transpose(0, 3, 1, 2), image_model())
    with pytest.raises(NormswapError, match="gives 3x8x8, but its input"):
        load_data(pixels, image_model(shape=("batch", 3, 9, 9)))


# --- labels ----------------------------------------------------------------------------------


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_labels_by_the_order_of_names() -> None:
    files = paths("cat/1.png", "cat/2.png", "dog/1.png", "eel/1.png")
    labels = folder_labels(files, classifier(3, "logits"))
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 2]
    for model in (
        classifier(4, "logits"),
        classifier(3, "image_embeds", "text_embeds"),
        classifier(3, "logits", texts=True),
        image_model(),
    ):
        assert folder_labels(files, model) is None
    assert folder_labels(files, classifier(3, "scores")) is not None
    assert folder_labels([*files, Path("x.png")], classifier(3, "logits")) is None
    assert folder_labels(paths("a/b/1.png", "a/c/1.png"), classifier(1, "logits")) is None
    assert folder_labels(paths("train/1.png", "val/1.png"), classifier(2, "logits")) is None


def test_labels_that_are_numbers() -> None:
    files = paths("0/a.png", "10/a.png", "2/a.png")
    labels = folder_labels(files, classifier(11, "logits"))
    assert labels is not None
    assert labels.tolist() == [0, 10, 2]
    assert folder_labels(files, classifier(10, "logits")) is None
    assert folder_labels(paths("1/a.png", "2/a.png"), classifier(2, "logits")) is None
    assert folder_labels(paths("1/a.png", "01/a.png"), classifier(2, "logits")) is None


# --- what is wrong ---------------------------------------------------------------------------


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(NormswapError, match=r"holds no images, it is empty; give .bmp, "):
        load_data(tmp_path, image_model())
    (tmp_path / "labels.csv").write_text("1,2")
    with pytest.raises(NormswapError, match=r"holds no images; its 1 files are of other kinds"):
        load_data(tmp_path, image_model())


def huge_png() -> bytes:
    """A PNG that says it has 30000x30000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(part)) + (named := kind + part) + struct.pack(">I", crc32(named))
        for kind, part in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bad_images(folder: Path) -> dict[str, tuple[bytes, str]]:
    picture(40, 40).save(folder / "whole.png")
    picture(40, 40).save(folder / "whole.jpg")
    png, jpeg = (folder / "whole.png").read_bytes(), (folder / "whole.jpg").read_bytes()
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    deep.save(folder / "deep.png")
    for name in ("whole.png", "whole.jpg"):
        (folder / name).unlink()
    return {
        "empty.png": (b"", "it is no image, or damaged"),
        "text.jpg": (b"not a picture at all", "it is no image, or damaged"),
        "cut.png": (png[: len(png) // 2], "truncated|damaged"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated|damaged"),
        "flipped.png": (png[:60] + b"\xff" * 40 + png[100:], "."),
        "huge.png": (huge_png(), r"more than \d+ pixels"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image"),
        "deep.png": ((folder / "deep.png").read_bytes(), "more than 8 bits"),
    }


def test_bad_images(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    cases = bad_images(tmp_path / "made")
    for name, (content, message) in cases.items():
        folder = tmp_path / name.replace(".", "-")
        (folder / "sub").mkdir(parents=True)
        for number in range(3):
            picture(9, 9).save(folder / f"{number}.png")
        (folder / "sub" / name).write_bytes(content)
        (folder / "sub" / f"z{name}").write_bytes(content)
        pattern = rf"2 of 5 images cannot be used: sub/{name} (?i:.*({message}))"
        with pytest.raises(NormswapError, match=pattern) as caught:
            load_data(folder, image_model())
        assert str(caught.value).startswith(f"{folder}: ")
        assert "\n" not in str(caught.value)
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "a.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(NormswapError, match=r"1 of 1 images .*: a.png .*No such"):
        load_data(tmp_path / "dangling", image_model())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="every folder can be read")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    picture(9, 9).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(NormswapError, match="closed: cannot be read"):
        load_data(tmp_path, image_model())


MODELS: list[tuple[Model, str]] = [
    (image_model(None), r"none is known for model.onnx; give --mean .*beside"),
    (image_model(Unsupported("it pads")), r"cannot follow that of model.onnx \(it pads\); give"),
    (image_model(shape=("batch", 1, 8, 8)), r"gives 3x8x8, but its input 'pixel_values' takes 1x8"),
    (image_model(shape=("batch", 3, 9, "w")), r"gives 3x8x8, but its input .* takes 3x9xw"),
    (image_model(shape=("batch", 64)), r"takes float32 batchx64, no preprocessed images"),
    (image_model(dtype=np.int64), r"takes int64 batchx3x8x8, no preprocessed images"),
    (
        replace(make_model(a=(("b",), np.int64), b=(("b",), np.int64)), preprocessing=RGB),
        "no image input",
    ),
    (
        image_model(Preprocessing("RGB", (0.0,) * 3, (1e-6,) * 3, crop=(8, 8)), dtype=np.float16),
        "NaN or infinite numbers",
    ),
]


@pytest.mark.parametrize(("model", "message"), MODELS, ids=range(len(MODELS)))
def test_models_that_take_no_images(model: Model, message: str, tmp_path: Path) -> None:
    picture(9, 9).save(tmp_path / "a.png")
    with pytest.raises(NormswapError, match=message) as caught:
        load_data(tmp_path, model)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)
