"""Preprocessing: equal to what transformers, timm and open_clip do themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.preprocessing_configs import (
    PROCESSORS,
    from_huggingface,
    from_open_clip,
    from_timm,
)
from normswap.io.sources.packages import import_extra
from tests.io.pictures import picture, write_pictures

ROUNDING = 1e-5
PLAIN = Preprocessing("RGB", (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def prepared(known: Preprocessing | Unsupported | None, path: Path) -> Array:
    assert isinstance(known, Preprocessing), known
    with Image.open(path) as image:
        return known.normalised(known.pixels(image))


def check_equal(known: Any, paths: list[Path], theirs: Callable[[Path], Any]) -> None:
    for path in paths:
        expected = np.asarray(theirs(path))
        ours = prepared(known, path)
        assert ours.dtype == np.float32
        assert ours.shape == expected.shape, path.name
        assert np.abs(ours - expected).max() <= ROUNDING, path.name


# --- transformers ----------------------------------------------------------------------------

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in PROCESSORS if kind != "DINOv3ViT"),
    ("ViT", {"size": {"height": 20, "width": 31}, "resample": 0}),
    ("ViT", {"size": 19, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 0.5]}),
    ("ViT", {"do_resize": False}),
    ("ViT", {"do_normalize": False}),
    ("ViT", {"do_rescale": False, "resample": 1}),
    ("ViT", {"rescale_factor": 1 / 16, "size": [7, 9]}),
    ("CLIP", {"size": {"shortest_edge": 33}, "crop_size": {"height": 30, "width": 27}}),
    ("CLIP", {"size": {"shortest_edge": 21}, "crop_size": {"height": 34, "width": 21}}),
    ("CLIP", {"size": 32, "crop_size": 29, "resample": 4}),
    ("CLIP", {"do_center_crop": False}),
    ("CLIP", {"do_resize": False, "crop_size": 40}),
    ("ConvNext", {"size": {"shortest_edge": 32}}),
    ("ConvNext", {"size": {"shortest_edge": 47}, "crop_pct": 0.95, "resample": 5}),
    ("PoolFormer", {"size": {"height": 40, "width": 30}, "crop_pct": 0.8}),
    ("PoolFormer", {"size": {"height": 31, "width": 31}, "crop_size": 28}),
    ("Levit", {"size": {"shortest_edge": 33}, "crop_size": 32}),
    ("Levit", {"size": {"height": 40, "width": 30}, "do_center_crop": False}),
    ("Siglip", {"size": 30}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_as_transformers(kind: str, options: dict[str, Any], pictures: list[Path]) -> None:
    transformers: Any = import_extra("transformers", "test")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    content = json.loads(processor.to_json_string())
    assert content["image_processor_type"] == f"{kind}ImageProcessor"

    def theirs(path: Path) -> Any:
        return processor(images=str(path), return_tensors="np").pixel_values[0]

    few = pictures if options else pictures[:5]
    if content.get("do_convert_rgb"):
        # Transparency in a palette outlives the conversion to RGB when transformers opens a file,
        # so that it puts white there; that of RGBA does not. Here all of it is dropped.
        few = [path for path in few if path.name != "g.png"]
    check_equal(from_huggingface(content, 3), few, theirs)
    # What an old file leaves out.
    named = {"feature_extractor_type": f"{kind}FeatureExtractor"}
    assert from_huggingface(named | options) == from_huggingface(content, 3)


@pytest.mark.parametrize("kind", ["DINOv3ViT", "CLIP", "ViT"])
def test_as_transformers_with_torchvision(kind: str, pictures: list[Path]) -> None:
    """Its other backend resizes tensors, and so is off by up to two grey levels itself."""
    transformers: Any = import_extra("transformers", "test")
    processor = getattr(transformers, f"{kind}ImageProcessor")()
    known = from_huggingface(json.loads(processor.to_json_string()), 3)
    assert isinstance(known, Preprocessing)
    assert from_huggingface({"image_processor_type": f"{kind}ImageProcessorFast"}) == known
    for path in pictures[:4]:
        image = Image.open(path).convert("RGB")
        expected = np.asarray(processor(images=image, return_tensors="pt").pixel_values[0])
        levels = (prepared(known, path) - expected) * np.array(known.std)[:, None, None] * 255
        assert np.abs(levels).max() < 2.01


def test_files_without_a_type_do_what_they_have_numbers_for() -> None:
    known = from_huggingface({"size": 8, "image_mean": 0.5, "image_std": [0.5]}, 1)
    assert isinstance(known, Preprocessing)
    assert (known.mode, known.resize, known.size, known.crop) == ("L", "squash", (8, 8), None)
    assert (known.mean, known.std, known.resample) == ((0.5,), (0.5,), "bilinear")
    plain = from_huggingface({})
    assert isinstance(plain, Preprocessing)
    assert (plain.mode, plain.mean, plain.scale) == ("RGB", (0, 0, 0), 1 / 255)
    assert (plain.resize, plain.output_size) == (None, None)


CLIP_LIKE = {"image_processor_type": "CLIPImageProcessor"}
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"image_processor_type": "Qwen2VLImageProcessor"}, "image processor Qwen2VLImageProcessor"),
    ({"image_processor_type": 3}, "image processor 3"),
    ({"do_pad": True, "size": 8}, "'do_pad'"),
    ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, "does not resize to"),
    ({"size": {"height": 8}}, "does not resize to"),
    ({"size": "large"}, "size is .'large', 'large'., not two sizes"),
    ({"size": 0}, "not two sizes 1..16384"),
    ({"size": 10**9}, "not two sizes"),
    ({"size": 8.5}, "not two sizes"),
    ({"size": [1, 2, 3]}, "wrong or missing value"),
    ({"size": 8, "resample": 17}, "wrong or missing value"),
    ({"size": 8, "resample": "sharp"}, "resample is 'sharp'"),
    ({"image_mean": [0.5]}, "wrong or missing value .'image_std'"),
    (CLIP_LIKE | {"image_mean": [0.5, 0.5]}, "mean has 2 numbers for 3 channels"),
    (CLIP_LIKE | {"image_mean": ["a", "b", "c"]}, "mean is .*, not numbers"),
    (CLIP_LIKE | {"image_mean": {}}, "mean is .*, not numbers"),
    (CLIP_LIKE | {"image_std": [0.5, 0.0, 0.5]}, "std and scale must be positive"),
    (CLIP_LIKE | {"image_std": [1e-300] * 3}, "NaN or infinite"),
    (CLIP_LIKE | {"image_std": [float("nan")] * 3}, "not numbers"),
    (CLIP_LIKE | {"rescale_factor": "1/255"}, "positive"),
    (CLIP_LIKE | {"crop_size": {"shortest_edge": 8}}, "wrong or missing value .'height'"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": 8, "crop_pct": 0}, "division"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": [8, 8]}, "shortest_edge"),
]


@pytest.mark.parametrize(("config", "reason"), UNSUPPORTED)
def test_unsupported(config: dict[str, Any], reason: str) -> None:
    known = from_huggingface(config)
    assert isinstance(known, Unsupported)
    assert re.search(reason, known.reason), known.reason
    assert "\n" not in known.reason


def test_channels_of_the_model() -> None:
    assert isinstance(from_huggingface(CLIP_LIKE, 4), Unsupported)
    assert isinstance(from_huggingface(CLIP_LIKE | {"do_convert_rgb": True}, 1), Preprocessing)
    grey = from_huggingface({"size": 8, "image_mean": [0.5], "image_std": [0.5]})
    assert isinstance(grey, Preprocessing)
    assert grey.mode == "L"


# --- timm and open_clip ----------------------------------------------------------------------

TIMM: list[dict[str, Any]] = [
    {},
    {"crop_pct": 0.95, "interpolation": "bilinear"},
    {"crop_mode": "squash", "interpolation": "lanczos"},
    {"crop_mode": "border"},
    {"crop_mode": "border", "crop_pct": 1.0, "input_size": (3, 35, 50)},
    {"input_size": (3, 30, 51), "crop_pct": 0.9},
    {"input_size": (3, 51, 30), "crop_mode": "squash", "crop_pct": 1.0},
    {"interpolation": "nearest", "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)},
]


@pytest.mark.parametrize("options", TIMM)
def test_as_timm(options: dict[str, Any], pictures: list[Path]) -> None:
    timm: Any = import_extra("timm", "test")
    config = {"input_size": (3, 33, 33), **options}
    data = timm.data.resolve_data_config(config)
    transform = timm.data.create_transform(**data, is_training=False)
    # timm's data sets convert an image when they open it.
    check_equal(from_timm(data), pictures, lambda path: transform(Image.open(path).convert("RGB")))


OPEN_CLIP: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({}, (32, 32)),
    ({"interpolation": "bilinear"}, (33, 33)),
    ({"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}, (31, 40)),
    ({"resize_mode": "longest", "fill_color": 9}, (33, 33)),
    ({"resize_mode": "shortest", "interpolation": "bilinear"}, (30, 51)),
]


@pytest.mark.parametrize(("options", "size"), OPEN_CLIP)
def test_as_open_clip(options: dict[str, Any], size: tuple[int, int], pictures: list[Path]) -> None:
    open_clip: Any = import_extra("open_clip", "test")
    config = asdict(open_clip.transform.PreprocessCfg(size=size, **options))
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )
    known = from_open_clip(config, *size)
    # As its data sets give it the images.
    check_equal(known, pictures, lambda path: transform(Image.open(path).convert("RGB")))


def test_broken_configs_of_timm_and_open_clip() -> None:
    for config in ({}, {"input_size": (3, 8, 8), "crop_mode": "center", "crop_pct": 0}):
        assert isinstance(from_timm(config), Unsupported)
    assert from_open_clip({}, 8, 8) is None
    assert isinstance(from_open_clip({"resize_mode": "wild"}, 8, 8), Unsupported)
    bad = {"mean": [0.5] * 3, "std": [0] * 3}
    assert isinstance(from_open_clip(bad, 8, 8), Unsupported)


# --- what is done to an image ----------------------------------------------------------------


def test_upright() -> None:
    image = picture(4, 6)
    image.getexif()[0x0112] = 6
    assert PLAIN.pixels(image).shape == (4, 6, 3)
    turned = replace(PLAIN, upright=True).pixels(image)
    assert np.array_equal(turned, np.rot90(np.asarray(image), -1))


def test_grey() -> None:
    grey = Preprocessing("L", (0.5,), (0.5,), scale=1 / 16)
    image = Image.fromarray(np.arange(12, dtype="u1").reshape(3, 4))
    pixels = grey.pixels(image)
    assert np.array_equal(pixels[..., 0], np.asarray(image))
    assert np.allclose(grey.normalised(pixels)[0], np.asarray(image) / 8 - 1)
    assert grey.pixels(picture(3, 4)).shape == (3, 4, 1)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused(mode: str) -> None:
    # Pillow's conversion would make them white.
    with pytest.raises(ValueError, match="more than 8 bits"):
        PLAIN.pixels(Image.new(mode, (4, 4)))


def test_an_elongated_image_is_not_blown_up() -> None:
    known = replace(PLAIN, resize="shortest", size=(10_000, 10_000), crop=(9, 9))
    with pytest.raises(ValueError, match="would be resized to 1000000x10000"):
        known.pixels(picture(1, 100))


# --- keeping it ------------------------------------------------------------------------------


def test_json() -> None:
    for known in (PLAIN, replace(PLAIN, resize="shortest", size=(3, 4), crop=(5, 6), upright=True)):
        text = known.to_json()
        assert "\n" not in text
        assert Preprocessing.from_json(text) == known


WRONG: list[tuple[str, Any]] = [
    ("mode", "CMYK"), ("mode", []), ("mean", 0.5), ("mean", [0.5]), ("mean", [[1], 2, 3]),
    ("mean", [True, 1, 1]), ("mean", [10**400, 0, 0]), ("std", [0, 1, 1]), ("std", [-1, 1, 1]),
    ("scale", 0), ("scale", "1"), ("scale", None), ("resize", "shortest"), ("size", [3, 4]),
    ("resample", "cubic"), ("crop", [0, 4]), ("crop", [4]), ("crop", [4, 1 << 20]), ("crop", "ab"),
    ("crop", [4.0, 4]), ("fill", [1, 2]), ("fill", [256, 0, 0]), ("fill", 0), ("margins", "none"),
    ("upright", 1), ("version", 2), ("version", None), ("further", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_json(name: str, value: Any) -> None:
    content = json.loads(PLAIN.to_json()) | {name: value}
    with pytest.raises(NormswapError, match=r"^preprocessing: ") as caught:
        Preprocessing.from_json(json.dumps(content))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "NaN", "[" * 100_000, " " * 20_000 + "{}", '{"version": 1}']
)
def test_no_json(text: str) -> None:
    with pytest.raises(NormswapError, match=r"^preprocessing: "):
        Preprocessing.from_json(text)


def test_values_without_sense() -> None:
    with pytest.raises(NormswapError, match="scale, mean and std give NaN or infinite"):
        replace(PLAIN, std=(1e-25, 1, 1), scale=1e25)
    with pytest.raises(NormswapError, match="resize and size"):
        replace(PLAIN, resize="squash")
