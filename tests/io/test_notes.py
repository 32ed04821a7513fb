"""A model keeps its preprocessing: through .onnx and .pt2 files, or in a file beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from normswap.assets.digits import DIGITS_VIT
from normswap.errors import NormswapError
from normswap.io.data import load_data
from normswap.io.load import load
from normswap.io.notes import PREPROCESSING
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.pt2 import read_pt2_note
from normswap.io.save import save
from normswap.io.sources.packages import ensure_torchvision_importable
from normswap.model import Model, Step, StepFit

DIGITS = Preprocessing(
    "L", (0.5,), (0.5,), 1 / 16, resize="squash", size=(8, 8), resample="bilinear", upright=True
)
CONFIG = {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.25]}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model in a folder with the preprocessing of digits-vit."""
    transformers = pytest.importorskip("transformers")
    ensure_torchvision_importable()  # else this file does not run by itself
    config = transformers.ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=8, patch_size=4, num_channels=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("digits")
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    shutil.copy(DIGITS_VIT / "preprocessor_config.json", folder)
    return load(folder)


@pytest.fixture(scope="module")
def saved(digits: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for suffix in ("onnx", "pt2"):
        save(digits, folder / f"with.{suffix}")
    save(replace(digits, preprocessing=None), folder / "without.pt2")
    proto = onnx.load(folder / "with.onnx")  # a second export would take seconds
    props = {p.key: p.value for p in proto.metadata_props if p.key != PREPROCESSING}
    onnx.helper.set_model_props(proto, props)
    onnx.save(proto, folder / "without.onnx")
    return folder


@pytest.fixture
def files(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "models"))


def test_it_is_kept_in_files(digits: Model, files: Path, tmp_path: Path) -> None:
    assert digits.preprocessing == DIGITS
    (tmp_path / "images").mkdir()
    levels = np.random.default_rng(0).integers(0, 17, (4, 8, 8), "u1")
    for number, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    for name in ("with.onnx", "with.pt2"):
        model = load(files / name)
        assert model.preprocessing == DIGITS
        data = load_data(tmp_path / "images", model)
        assert np.allclose(data.feeds["pixel_values"][:, 0], levels / 8 - 1)
        again = files / f"again-{name}"
        save(replace(model, preprocessing=replace(DIGITS, resample="box")), again)
        assert load(again).preprocessing == replace(DIGITS, resample="box")
        assert load(files / name).preprocessing == DIGITS
        assert load(files / name, trust=True).preprocessing == DIGITS
    assert load(onnx_ir_of(files / "with.onnx")).preprocessing == DIGITS
    for name in ("without.onnx", "without.pt2"):
        model = load(files / name)
        assert model.preprocessing is None
        with pytest.raises(NormswapError, match=rf"images: .* none is known for {name}; give"):
            load_data(tmp_path / "images", model)


def onnx_ir_of(path: Path) -> Any:
    import onnx_ir

    return onnx_ir.load(path)


def test_saving_keeps_the_other_metadata(files: Path) -> None:
    proto = onnx.load(files / "without.onnx")
    given = {p.key: p.value for p in proto.metadata_props} | {
        "author": "someone",
        PREPROCESSING: "old",
    }
    onnx.helper.set_model_props(proto, given)
    onnx.save(proto, files / "x.onnx")
    model = load(files / "x.onnx")
    save(model, files / "y.onnx")
    found = {p.key: p.value for p in onnx.load(files / "y.onnx").metadata_props}
    assert found == given
    save(replace(model, preprocessing=DIGITS), files / "y.onnx")
    found = {p.key: p.value for p in onnx.load(files / "y.onnx").metadata_props}
    assert found == given | {PREPROCESSING: DIGITS.to_json()}
    assert model.to_onnx_ir().metadata_props[PREPROCESSING] == "old"


def test_a_configuration_beside_the_file(files: Path) -> None:
    for place in (files / "preprocessor_config.json", files / "processor_config.json"):
        named = place.name.startswith("processor")
        place.write_text(json.dumps({"image_processor": CONFIG} if named else CONFIG))
        for name in ("without.onnx", "without.pt2"):
            known = load(files / name).preprocessing
            assert isinstance(known, Unsupported)
            assert "std has 3 numbers for 1 channels" in known.reason
        held = CONFIG | {"image_std": [0.5]}
        place.write_text(json.dumps({"image_processor": held} if named else held))
        for name in ("without.onnx", "without.pt2"):
            known = load(files / name).preprocessing
            assert isinstance(known, Preprocessing)
            assert (known.mode, known.mean, known.size) == ("L", (0.25,), (8, 8))
            assert load(files / name.replace("without", "with")).preprocessing == DIGITS
        place.unlink()


def test_a_configuration_beside_the_folder_onnx(files: Path) -> None:
    config = json.dumps(CONFIG | {"image_std": [0.5]})
    (files / "preprocessor_config.json").write_text(config)
    for folder, expected in (("onnx", Preprocessing), ("other", type(None))):
        (files / folder).mkdir()
        shutil.copy(files / "without.onnx", files / folder)
        assert isinstance(load(files / folder / "without.onnx").preprocessing, expected)


def damaged_onnx(path: Path, text: str) -> None:
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {PREPROCESSING: text})
    onnx.save(proto, path)


def damaged_pt2(path: Path, text: str) -> None:
    program = torch.export.load(path)
    torch.export.save(program, path, extra_files={PREPROCESSING: text})


@pytest.mark.parametrize(
    ("name", "damage"), [("with.onnx", damaged_onnx), ("with.pt2", damaged_pt2)]
)
def test_what_a_file_holds_is_checked(
    name: str, damage: Callable[[Path, str], None], files: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for text, message in (
        ("{", "no JSON"),
        ('{"version":1,"code":"import os"}', "other fields"),
        (DIGITS.to_json().replace("[8,8]", "[8,100000]"), "size is .8, 100000., not two sizes"),
        (DIGITS.to_json().replace("[0.5]", "[0.5,NaN]"), "mean is .*, not numbers"),
    ):
        damage(files / name, text)
        model = load(files / name)  # it matters to those who need it only
        pattern = rf"images: .*follow that of {name} \(what the file holds .* damaged; .*{message}"
        with pytest.raises(NormswapError, match=pattern) as caught:
            load_data(tmp_path / "images", model)
        assert "\n" not in str(caught.value)


def test_damaged_configurations_do_not_keep_a_model_from_loading(files: Path) -> None:
    for text in ("{", "[]", '{"size": {"depth": 3}}', "\xff", '{"do_pad": true}'):
        (files / "preprocessor_config.json").write_text(text, encoding="latin-1")
        assert isinstance(load(files / "without.onnx").preprocessing, Unsupported)


def test_notes_of_a_pt2(files: Path) -> None:
    path = files / "with.pt2"
    assert read_pt2_note(path, PREPROCESSING) == DIGITS.to_json()
    assert read_pt2_note(path, "other") is None
    program = torch.export.load(path)
    torch.export.save(program, path, extra_files={PREPROCESSING: "x" * 100_000})
    assert read_pt2_note(path, PREPROCESSING) is None
    path.write_bytes(b"no archive")
    assert read_pt2_note(path, PREPROCESSING) is None


FITS = [StepFit("norm1", "predicted", 0.01, 128), StepFit("norm2", "affine", None, None)]


def test_what_a_swap_was_fitted_to_be_is_kept(digits: Model, files: Path) -> None:
    step = Step("swap to auto", 2, [], [], ["norm1", "norm2"], FITS)
    for name in ("with.onnx", "with.pt2"):
        model = replace(load(files / name), history=(step,))
        save(model, files / f"fitted-{name}")
        assert load(files / f"fitted-{name}").history == (step,)


@pytest.mark.parametrize(
    "fits", ["3", '[{"site": "a"}]', '[["a", "b"]]', '[{"site": 1, "form": 2, "held_out_error": '
    '"x", "multiply_adds": 1}]', '[{"site": 1, "form": 2, "held_out_error": 0, "multiply_adds": '
    "1e999}]"],
)  # fmt: skip
def test_fits_that_are_none_are_dropped(files: Path, fits: str) -> None:
    proto = onnx.load(files / "without.onnx")
    head = '{"name": "swap", "done": 1, "skipped": [], "notes": []'
    props = {"normswap.history": f'[{head}, "fits": {fits}}}]'}
    onnx.helper.set_model_props(proto, props)
    onnx.save(proto, files / "damaged.onnx")
    assert load(files / "damaged.onnx").history == ()
