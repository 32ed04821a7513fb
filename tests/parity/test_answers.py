"""What both models answer: which samples are told, their pictures, and the classes of a CLIP."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.model import Model
from normswap.parity.answers import answers_of, with_pictures
from normswap.parity.report import Answers, ApproximateOutput, Fate
from normswap.parity.validation import validate

LABELS = np.arange(100) % 10
IMAGENET = Preprocessing("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIXTEEN = Preprocessing("L", (0.5,), (0.5,), scale=1 / 16)


def test_those_that_part_are_told_first() -> None:
    reference, candidate = LABELS.copy(), LABELS.copy()
    candidate[[90, 91]] += 1  # lost
    reference[50] += 1  # won
    reference[[3, 4]] += 1
    candidate[[3, 4]] += 2  # both wrong
    found = answers_of("logits", reference, candidate, LABELS, False)
    assert found.counts == {
        "only the reference is right": 2,
        "only the candidate is right": 1,
        "both are wrong": 2,
        "both are right": 95,
    }
    assert [sample.row for sample in found.samples[:6]] == [90, 91, 50, 3, 4, 0]
    assert len(found.samples) == 24
    assert found.samples[0].fate is Fate.LOST
    assert (found.samples[0].label, found.samples[0].candidate) == (0, 1)


def test_no_fate_takes_all_places() -> None:
    found = answers_of("logits", LABELS, (LABELS + 1) % 10, LABELS, False)
    assert {sample.fate for sample in found.samples} == {Fate.LOST}
    candidate = np.where(np.arange(100) < 80, LABELS + 1, LABELS)
    fates = [s.fate for s in answers_of("logits", LABELS, candidate, LABELS, False).samples]
    assert fates == [Fate.LOST] * 12 + [Fate.RIGHT] * 12


def test_without_labels_they_agree_or_differ() -> None:
    candidate = LABELS.copy()
    candidate[7] += 1
    found = answers_of("logits", LABELS, candidate, None, False)
    assert found.counts == {"different classes": 1, "the same class": 99}
    assert [found.samples[0].row, found.samples[0].label] == [7, None]


@pytest.fixture
def classifier(onnx_model: Callable[..., Model]) -> Callable[..., Model]:
    """The class of an image is the brightest pixel of its first channel."""

    def make(known: Any, channels: int = 3, side: int = 4, turn: int = 0) -> Model:
        size = channels * side * side
        weight = np.roll(np.eye(size, side * side, dtype=np.float32), turn, axis=1)
        nodes = [("Flatten", ["x"], "flat", {}), ("MatMul", ["flat", "weight"], "logits", {})]
        inputs = {"x": (("batch", channels, side, side), np.float32)}
        model = onnx_model(nodes, inputs, ["logits"], {"weight": weight})
        return replace(model, preprocessing=known)

    return make


def _shown(answers: Answers | None) -> list[Array]:
    assert answers is not None
    return [np.asarray(Image.open(io.BytesIO(s.image))) for s in answers.samples if s.image]


def test_pictures_are_what_was_preprocessed(classifier: Callable[..., Model]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    images = np.stack([IMAGENET.normalised(p) for p in pixels])
    ours, theirs = classifier(IMAGENET), classifier(IMAGENET, turn=1)
    data = {"x": images, "labels": np.zeros(5, np.int64)}
    report = validate(ours, theirs, data=data, contract="approximate")
    assert report.answers is not None
    assert (report.answers.output, report.answers.zero_shot) == ("logits", False)
    assert sum(report.answers.counts.values()) == 5
    for sample, shown in zip(report.answers.samples, _shown(report.answers), strict=True):
        assert np.array_equal(shown, pixels[sample.row])
        assert sample.reference == images[sample.row, 0].argmax()
    written = report.to_json()["answers"]
    assert written["counts"] == report.answers.counts
    assert written["samples"][0].keys() == {"row", "label", "reference", "candidate"}


def test_grey_pixels_up_to_16_are_brightened(classifier: Callable[..., Model]) -> None:
    pixels = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4, 1) // 2
    images = np.stack([SIXTEEN.normalised(p) for p in pixels])
    model = classifier(SIXTEEN, channels=1)
    found = answers_of("logits", np.arange(2), np.arange(2), None, False)
    first, second = _shown(with_pictures(found, model, Data({"x": images}, None)))
    assert first.shape == second.shape == (4, 4)
    assert second.max() == 255
    assert first.max() == round(7 / 15 * 255)


def test_pictures_are_small(classifier: Callable[..., Model]) -> None:
    side = 224
    images = np.random.default_rng(0).standard_normal((30, 3, side, side)).astype(np.float32)
    found = answers_of("logits", np.arange(30), np.arange(30), None, False)
    model = classifier(IMAGENET, side=4)
    pictured = with_pictures(found, model, Data({"x": images}, None))
    assert {shown.shape for shown in _shown(pictured)} == {(112, 112, 3)}
    assert sum(len(sample.image or b"") for sample in pictured.samples) < 300_000


@pytest.mark.parametrize("known", [None, Unsupported("odd"), SIXTEEN])
def test_no_pictures_where_pixels_are_not_known(
    classifier: Callable[..., Model], known: Any
) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    report = validate(
        classifier(known), classifier(known), data={"x": images}, contract="approximate"
    )
    assert report.answers is not None
    assert _shown(report.answers) == []
    assert len(report.answers.samples) == 3


# -- a CLIP --------------------------------------------------------------------------------------

WIDTH = 4


@pytest.fixture
def clip(onnx_model: Callable[..., Model]) -> Callable[..., Model]:
    """An image's embedding is its first pixel, a text's the row of the table of its id."""

    def make(table: Array) -> Model:
        nodes: list[Any] = [
            ("GlobalMaxPool", ["x"], "pooled", {}),
            ("Flatten", ["pooled"], "image_embeds", {"axis": 1}),
            ("Gather", ["table", "ids"], "rows", {}),
            ("ReduceMax", ["rows"], "text_embeds", {"axes": [1], "keepdims": 0}),
            ("Transpose", ["text_embeds"], "across", {"perm": [1, 0]}),
            ("MatMul", ["image_embeds", "across"], "logits_per_image", {}),
        ]
        inputs = {"x": (("batch", WIDTH, 1, 1), np.float32), "ids": (("batch", 1), np.int64)}
        outputs = ("logits_per_image", "text_embeds", "image_embeds")
        return onnx_model(nodes, inputs, outputs, {"table": table.astype(np.float32)})

    return make


def test_the_classes_of_a_clip_are_zero_shot(clip: Callable[..., Model]) -> None:
    """Texts 0 to 3 are of class 7, texts 4 to 7 of class 9; a class is the mean of its texts."""
    eye = np.eye(WIDTH)
    table = np.vstack([eye[[0, 0, 0, 1]], eye[[2, 2, 3, 3]]])
    ids = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 0])
    labels = np.array([7] * 4 + [9] * 4 + [7, 7])
    images = eye[[0, 0, 1, 1, 2, 2, 3, 3, 3, 0]].reshape(10, WIDTH, 1, 1)
    data = {"x": images, "ids": ids[:, None], "labels": labels}
    moved = clip(table[:, [2, 1, 0, 3]])  # texts of channel 0 and 2 trade places
    report = validate(clip(table), moved, data=data, contract="approximate")
    assert report.retrieval is None
    outputs = {o.name: o for o in report.outputs if isinstance(o, ApproximateOutput)}
    image = outputs["image_embeds"]
    assert (image.accuracy_reference, image.accuracy_candidate) == (0.9, 0.4)
    assert image.top1_agreement == 0.5
    for name in ("logits_per_image", "text_embeds"):  # whose columns are no classes
        assert outputs[name].top1_agreement is outputs[name].top5_agreement is None
        assert outputs[name].kl_mean is outputs[name].accuracy_reference is None
    assert report.answers is not None
    assert (report.answers.output, report.answers.zero_shot) == ("image_embeds", True)
    assert report.answers.counts["only the reference is right"] == 5
    assert report.answers.samples[0].label == 7
    assert not any("no output has" in finding.message for finding in report.findings)


def test_images_alone_have_no_zero_shot_classes(clip: Callable[..., Model]) -> None:
    eye = np.eye(WIDTH, dtype=np.float32)
    data = {"x": eye.reshape(WIDTH, WIDTH, 1, 1), "labels": np.arange(WIDTH)}
    report = validate(clip(eye), clip(eye), data=data, contract="approximate")
    assert report.answers is None
    assert all(
        o.accuracy_reference is None for o in report.outputs if isinstance(o, ApproximateOutput)
    )
