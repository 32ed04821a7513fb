"""Preprocessing that the user gives, bad images that are left out, and classes by their names."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import normswap as ns
from normswap.errors import NormswapError
from normswap.io.data import load_data
from normswap.io.images import adjusted, folder_labels
from normswap.io.notes import with_notes
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.preprocessing_configs import named_classes
from tests.io.pictures import picture
from tests.io.test_images import RGB, classifier, image_model


def _folder(folder: Path, *names: str, bad: tuple[str, ...] = ()) -> Path:
    for number, name in enumerate(sorted((*names, *bad))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in bad:
            (folder / name).write_bytes(b"no image")
        else:
            Image.new("RGB", (9, 9), (10 * number, 0, 0)).save(folder / name)
    return folder


# -- bad images ----------------------------------------------------------------------------------


def test_all_bad_images_are_named_at_once(tmp_path: Path) -> None:
    bad = tuple(f"{letter}.png" for letter in "bdfghij")
    folder = _folder(tmp_path, "a.png", "c.png", bad=bad)
    with pytest.raises(NormswapError) as caught:
        load_data(folder, image_model())
    message = str(caught.value)
    assert "7 of 9 images cannot be used: b.png (it is no image, or damaged), d.png (" in message
    assert "h.png (it is no image, or damaged) and 2 more; --skip-bad leaves" in message
    assert "i.png" not in message


def test_bad_images_are_left_out_with_their_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = ("0/a.png", "0/c.png", "1/d.png", "2/f.png")
    folder = _folder(tmp_path, *good, bad=("0/b.png", "1/e.png"))
    model = classifier(3, "logits")
    with caplog.at_level(logging.WARNING, logger="normswap"):
        data = load_data(folder, model, skip_bad=True)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 2]
    red = data.feeds["x"][:, 0, 0, 0] * RGB.std[0] + RGB.mean[0]
    assert np.rint(red * 25.5).tolist() == [0, 2, 3, 5]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "2 of 6 images cannot be used: 0/b.png (" in warning
    assert "1/e.png (it is no image, or damaged); they are left out" in warning
    drawn = load_data(folder, model, samples=5, skip_bad=True)
    assert 3 <= drawn.count < 5
    assert drawn.labels is not None
    assert drawn.count == len(drawn.labels)


def test_where_no_image_can_be_used(tmp_path: Path) -> None:
    folder = _folder(tmp_path, bad=("a.png", "b.png"))
    for known in (RGB, replace(RGB, crop=None)):
        with pytest.raises(NormswapError, match=r"2 of 2 images cannot be used.*give other"):
            load_data(folder, image_model(known, ("batch", 3, "h", "w")), skip_bad=True)


def test_the_size_is_that_of_the_first_image_that_can_be_used(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "b.png", "c.png", bad=("a.png",))
    model = image_model(replace(RGB, crop=None), ("batch", 3, "h", "w"))
    assert load_data(folder, model, skip_bad=True).feeds["pixel_values"].shape == (2, 3, 9, 9)


# -- preprocessing -------------------------------------------------------------------------------


def _known(model: ns.Model) -> Preprocessing:
    assert isinstance(model.preprocessing, Preprocessing)
    return model.preprocessing


def test_parts_that_are_given_replace_what_is_known() -> None:
    model = image_model()
    assert adjusted(model) is model
    known = replace(RGB, scale=1.0)
    changed = _known(adjusted(image_model(known), mean=(0.1,), resample="box"))
    assert changed == replace(RGB, mean=(0.1, 0.1, 0.1), resample="box")
    assert _known(adjusted(model, size=(12,))) == replace(RGB, size=(12, 12))
    squashed = _known(adjusted(model, size=(8, 8)))
    assert squashed == replace(RGB, resize="squash", size=(8, 8), crop=None)
    with pytest.raises(NormswapError, match="mean has 2 numbers for 3 channels"):
        adjusted(model, mean=(0.1, 0.2))
    with pytest.raises(NormswapError, match="none of nearest"):
        adjusted(model, resample="sharp")


def test_where_nothing_is_known() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1,)
    for known in (None, Unsupported("odd")):
        made = _known(adjusted(image_model(known), mean=mean, std=std))
        assert made == Preprocessing(
            "RGB", mean, (0.1,) * 3, resize="shortest", size=(8, 8), crop=(8, 8),
            margins="torchvision",
        )  # fmt: skip
        with pytest.raises(NormswapError, match=r"give --mean and --std$"):
            adjusted(image_model(known), mean=mean)
    grey = adjusted(image_model(None, ("batch", 1, 8, 12)), mean=(0.5,), std=(0.5,))
    assert (_known(grey).mode, _known(grey).crop) == ("L", (8, 12))
    sizeless = image_model(None, ("batch", 3, "h", "w"))
    with pytest.raises(NormswapError, match="give --mean, --std and --size"):
        adjusted(sizeless, mean=mean, std=std)
    assert _known(adjusted(sizeless, mean=mean, std=std, size=(16,))).crop == (16, 16)


def test_given_to_load_it_goes_into_the_file(tmp_path: Path) -> None:
    ns.save(classifier(3, "logits"), tmp_path / "a.onnx")
    given = replace(RGB, resample="box")
    model = ns.load(tmp_path / "a.onnx", preprocessing=given)
    assert model.preprocessing == given
    ns.save(model, tmp_path / "b" / "b.onnx")
    assert ns.load(tmp_path / "b" / "b.onnx").preprocessing == given


_CONFIG = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}


@pytest.mark.parametrize(
    ("place", "file", "found"),
    [
        ("m", "m/a.onnx", True),
        ("m", "m/onnx/a.onnx", True),
        ("m", "m/optimised/a.onnx", True),
        (".", "m/a.onnx", False),
    ],
)
def test_a_configuration_is_found_near_the_file(
    place: str, file: str, found: bool, tmp_path: Path
) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "preprocessor_config.json").write_text(json.dumps(_CONFIG))
    (tmp_path / "m").mkdir(exist_ok=True)
    labels = {"id2label": {"1": "cat", "0": "dog", "2": "cow"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(labels))
    model = with_notes(
        replace(classifier(3, "logits"), path=tmp_path / file, preprocessing=None),
        lambda key: None,
    )
    assert isinstance(model.preprocessing, Preprocessing) == found
    assert model.classes == ("dog", "cat", "cow")


def test_a_configuration_among_the_images_is_used_where_there_is_no_other(tmp_path: Path) -> None:
    picture(20, 30).save(tmp_path / "a.png")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(_CONFIG))
    own = load_data(tmp_path, image_model()).feeds["pixel_values"]
    theirs = load_data(tmp_path, image_model(None)).feeds["pixel_values"]
    assert own.shape == theirs.shape == (1, 3, 8, 8)
    assert not np.allclose(own, theirs)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(NormswapError, match=r"cannot follow that of .*is damaged"):
        load_data(tmp_path, image_model(None))


# -- classes -------------------------------------------------------------------------------------


def test_labels_follow_the_order_of_the_classes() -> None:
    files = [Path("cat/a.png"), Path("dog/b.png")]
    named = replace(classifier(3, "logits"), classes=("dog", "cow", "cat"))
    for model, expected in ((named, [2, 0]), (classifier(2, "logits"), [0, 1])):
        labels = folder_labels(files, model)
        assert labels is not None
        assert labels.tolist() == expected
    digits = replace(classifier(2, "logits"), classes=("7", "1"))
    labels = folder_labels([Path("7/a.png"), Path("1/a.png")], digits)
    assert labels is not None
    assert labels.tolist() == [0, 1]
    others = [Path("bird/a.png"), Path("cat/b.png"), Path("fish/c.png")]
    labels = folder_labels(others, named)  # not of these names: as without
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "dog", "1": "cat"}, ("dog", "cat")),
        ({1: "cat", 0: "dog"}, ("dog", "cat")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        ({"0": "dog", "2": "cat"}, ()),
        ({"0": "dog", "1": "dog"}, ()),
        ({"0": "dog", "1": 3}, ()),
        (["dog", "cat"], ()),
        (None, ()),
        ({}, ()),
    ],
)
def test_classes_of_a_configuration(labels: Any, expected: tuple[str, ...]) -> None:
    assert named_classes({"id2label": labels}) == expected


def test_classes_go_into_the_file(tmp_path: Path) -> None:
    model = replace(classifier(3, "logits"), classes=("dog", "cow", "cat"))
    ns.save(model, tmp_path / "a.onnx")
    assert ns.load(tmp_path / "a.onnx").classes == model.classes
    for damaged in ("{", "3", '["dog", 1]', "[[]]"):
        assert with_notes(model, {"normswap.classes": damaged}.get).classes == ()
