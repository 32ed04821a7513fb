"""Models of the sources that torch reads or captures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.io.capture import capture
from normswap.io.fx_model import model_from_program
from normswap.io.history import KEY as HISTORY
from normswap.io.history import history_of
from normswap.io.huggingface import huggingface_source
from normswap.io.module import module_source
from normswap.io.open_clip import open_clip_source
from normswap.io.preprocessing_files import KEY, preprocessing_of_file
from normswap.io.pt2.file import read_pt2, read_pt2_note
from normswap.io.source import Source
from normswap.io.timm import timm_source
from normswap.model import Model

_NAMED = {
    "hf": lambda rest: huggingface_source(f"hf:{rest}"),
    "timm": timm_source,
    "open_clip": open_clip_source,
}


def model_from_torch(
    source: object, example_inputs: Any, dynamic_axes: dict[str, dict[int, str]] | None
) -> Model:
    """The model of a module or an ExportedProgram; see ``load``.

    Raises NormswapError for anything else.
    """
    if isinstance(source, torch.export.ExportedProgram):
        return model_from_program(source, "program")
    if not isinstance(source, nn.Module):
        kind = type(source).__name__
        raise NormswapError(
            f"load: '{kind}' is no model; give a path, a module, a program or an onnx_ir.Model"
        )
    if example_inputs is None:
        raise NormswapError("load: a module needs example_inputs, a tuple or dict of tensors")
    return model_from_source(module_source(source, example_inputs, dynamic_axes))


def model_from_pt2(path: Path, trust: bool) -> Model:
    """The model in a ``.pt2`` file; ``trust`` lets its pickled parts run code."""
    model = model_from_program(read_pt2(path, trust), path.name, path=path)
    known = preprocessing_of_file(path, model.inputs, read_pt2_note(path, KEY))
    done = history_of(read_pt2_note(path, HISTORY))
    return replace(model, preprocessing=known, history=done)


def model_from_folder(path: Path) -> Model:
    """The model in a Hugging Face folder."""
    return model_from_source(huggingface_source(str(path)))


def model_from_name(kind: str, name: str) -> Model:
    """The model that ``kind``, one of ``load.NAMED``, has by that name."""
    return model_from_source(_NAMED[kind](name))


def model_from_source(source: Source) -> Model:
    """The model that capturing ``source`` gives."""
    return model_from_program(
        capture(source), source.name, source.output_names, source.preprocessing
    )
