"""What a user may begin with: weights alone, images with their own preparation, a new folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normswap.io.sources.packages import ensure_torchvision_importable
from tests.cli.conftest import Run

ensure_torchvision_importable()
timm = pytest.importorskip("timm")

ARCH = "timm:test_vit?num_classes=3&img_size=32"


def test_weights_alone(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "tuned.pth"
    torch.save(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), weights)
    assert "--arch timm:NAME" in run("inspect", weights).error
    assert (
        "try timm:test_vit?num_classes=3&img_size=32"
        in run("inspect", weights, "--arch", "timm:test_vit").error.splitlines()[-1]
    )
    assert len(run("inspect", weights, "--arch", ARCH, "--json").json["sites"]) == 13
    out = tmp_path / "new" / "folder" / "fused.pt2"
    assert run("swap", weights, "--arch", ARCH, "--to", "rmsnorm", "-o", out).status == 0
    assert os.listdir(out.parent) == [out.name]
    assert run("validate", weights, out, "--arch", ARCH).status == 0
    assert "no MODEL is a file of weights" in run("inspect", out, "--arch", ARCH).error


def test_a_run_that_writes_nothing_makes_no_folder(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.onnx"
    assert run("swap", files / "no-norm.onnx", "--to", "fused", "-o", out).status == 1
    assert "no such file" in run("swap", tmp_path / "a.onnx", "--to", "fused", "-o", out).error
    assert os.listdir(tmp_path) == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for label in "0123456789":
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 255, (10, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "images" / "4" / "1.png").write_bytes(b"no image")
    return tmp_path / "images"


GIVEN = ("--mean", "0.5", "--std", "0.25", "--resample", "bilinear")


def test_images_without_a_configuration(run: Run, files: Path, images: Path) -> None:
    vit = files / "spelled-out.onnx"
    asked = ("validate", vit, vit, "--contract", "approximate", "--data", images)
    assert "give --mean and --std" in run(*asked).error
    assert "1 of 30 images cannot be used: 4/1.png (it is no image" in run(*asked, *GIVEN).error
    outcome = run(*asked, *GIVEN, "--skip-bad", "--json")
    assert outcome.status == 0
    assert "4/1.png" in outcome.err
    assert "they are left out" in outcome.err
    (output,) = outcome.json["outputs"]
    assert output["rows"] == 29
    assert output["accuracy_reference"] is not None


def test_what_was_given_goes_with_the_model(
    run: Run, files: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "affine.onnx"
    swap = ("swap", files / "spelled-out.onnx", "--to", "affine", "-o", out, "--data", images)
    assert run(*swap, *GIVEN, "--size", "8x8", "--skip-bad", "--samples", "20").status == 0
    assert run(
        "validate", files / "spelled-out.onnx", out, "--contract", "approximate",
        "--data", images, "--skip-bad", *GIVEN,
    ).status == 0  # fmt: skip
    (images / "4" / "1.png").unlink()
    assert run("validate", out, out, "--contract", "approximate", "--data", images).status == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--mean", "a,b"), "'a,b' is not numbers such as"),
        (("--size", "1x2x3"), "'1x2x3' is not a size such as"),
        (("--size", "x"), "'x' is not a size such as"),
        (("--mean", "0.5,0.5", "--std", "1"), "mean has 2 numbers for 1 channels"),
        (("--mean", "0.5", "--std", "0"), "std and scale must be positive"),
        (("--skip-bad",), "--skip-bad belongs to --data"),
        (("--data", "a.npy", "--skip-bad"), "--skip-bad belongs to --data"),
    ],
)
def test_wrong_values(run: Run, files: Path, given: tuple[str, ...], expected: str) -> None:
    vit = files / "spelled-out.onnx"
    outcome = run("validate", vit, vit, *given)
    assert outcome.status == 2
    assert expected in outcome.err
