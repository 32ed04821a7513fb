"""The files that the commands of README.md and docs/ are run on: small ones under a user's names.

``vit/`` is the trained ViT of this repository as a folder of transformers, ``vit.pt2`` the same
captured, ``vit.onnx`` exported with every LayerNorm spelled out.
``big.onnx`` is the same with a residual stream as large as that of big models.
``images/`` are images to calibrate with, ``test/`` has a folder for each class.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from normswap import save
from normswap.assets import digits
from normswap.io.sources import evaluating
from normswap.io.sources.huggingface import huggingface_source
from normswap.io.torch_model import model_from_source

_CALIBRATION, _TEST = 320, 300
_LARGE = 512.0  # a spelled-out norm overflows in float16 where a channel is 256 from the mean


@pytest.fixture(scope="session")
def example_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; not to be written to."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(digits.DIGITS_VIT, folder / "vit")
    shutil.copy(digits.DIGITS_VIT / "preprocessor_config.json", folder)
    source = huggingface_source(str(digits.DIGITS_VIT))
    save(model_from_source(source), folder / "vit.pt2")
    images = torch.zeros(2, 1, 8, 8)
    _export(source.module, images, folder / "vit.onnx")
    _export(_with_large_stream(source.module), images, folder / "big.onnx")
    data = digits.load_digits_split()
    _write_images(folder / "images", data.train_images[:_CALIBRATION])
    labels = data.test_labels[:_TEST]
    for label in range(10):
        _write_images(folder / "test" / str(label), data.test_images[:_TEST][labels == label])
    return folder


def _with_large_stream(vit: nn.Module) -> nn.Module:
    """The ViT with a stream ``_LARGE`` times as large, which its norms do not see."""
    large = copy.deepcopy(vit)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if ".embeddings." in name or ".o_proj." in name or ".mlp.fc2." in name:
                parameter.mul_(_LARGE)
    return large


def _export(module: nn.Module, images: torch.Tensor, path: Path) -> None:
    """By the exporter that has no operator for LayerNorm at its opset 14, and spells it out."""
    names = ["pixel_values"], ["logits"]
    with warnings.catch_warnings(), evaluating(module):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (images,), str(path), dynamo=False, opset_version=14,
            input_names=names[0], output_names=names[1],
            dynamic_axes={name: {0: "batch"} for name in (*names[0], *names[1])},
        )  # fmt: skip


def _write_images(folder: Path, images: np.ndarray) -> None:
    """Of float32 [N, 1, 8, 8] in -1..1."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        pixels = np.rint((image[0] + 1) * (digits.PIXEL_MAX / 2)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
