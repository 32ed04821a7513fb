"""Tiny models as files, and the command line in this process (importing torch takes seconds)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from normswap import load, save
from normswap_cli.main import main
from tests.zoo.exports import model_as, zoo_model


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error of a command that refused its input."""
        assert (self.status, self.out) == (2, "")
        assert self.err.startswith("normswap: "), self.err
        (line,) = self.err.splitlines()
        return line.removeprefix("normswap: ")


Run = Callable[..., Outcome]


@pytest.fixture
def run() -> Run:
    def invoke(*args: object) -> Outcome:
        result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="normswap")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback is a bug
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models: not to be written to."""
    folder = tmp_path_factory.mktemp("files")
    save(model_as("hf_vit", "torchscript-14"), folder / "spelled-out.onnx")
    save(model_as("hf_vit", "fx"), folder / "vit.pt2")
    save(model_as("hf_clip", "torchscript-17"), folder / "clip.onnx")
    zoo_model("hf_vit").module.model.save_pretrained(folder / "vit-folder")
    plain = nn.Sequential(nn.Flatten(1), nn.Linear(64, 3))
    no_norm = load(plain, example_inputs=(torch.randn(2, 1, 8, 8),))
    save(no_norm, folder / "no-norm.onnx")
    random = np.random.default_rng(0)
    images = random.standard_normal((24, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", images=images, labels=random.integers(0, 10, 24))
    clip_images = random.standard_normal((20, 3, 16, 16)).astype(np.float32)
    np.save(folder / "clip-images.npy", clip_images)
    return folder
