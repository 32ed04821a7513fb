"""``load``: a ``Model`` from a file, a folder, a name or a module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.io.capture import capture
from normswap.io.fx_model import model_from_program
from normswap.io.history import KEY as HISTORY
from normswap.io.history import history_of
from normswap.io.huggingface import huggingface_source
from normswap.io.module import module_source
from normswap.io.onnx import read_onnx
from normswap.io.onnx_model import model_from_onnx
from normswap.io.open_clip import open_clip_source
from normswap.io.preprocessing_files import KEY, preprocessing_of_file
from normswap.io.pt2 import read_pt2, read_pt2_note, refuse_pickle
from normswap.io.source import Source
from normswap.io.timm import timm_source
from normswap.model import Model

_FORMS = ".onnx, .pt2, a Hugging Face folder, hf:ID, timm:NAME or open_clip:NAME"


def load(
    source: str | Path | nn.Module | torch.export.ExportedProgram | ir.Model,
    *,
    example_inputs: Any = None,
    dynamic_axes: dict[str, dict[int, str]] | None = None,
    trust: bool = False,
) -> Model:
    """A model from ``source``, with its batch dynamic where the model allows it.

    ``source``: a path to ``.onnx`` or ``.pt2``, a Hugging Face folder, ``hf:ID``, ``timm:NAME``,
    ``open_clip:NAME``, a module (with ``example_inputs``, a tuple or dict of tensors, and
    optionally the ``dynamic_axes`` of each input), an ExportedProgram or an ``onnx_ir.Model``.
    ``trust``: let a ``.pt2`` file's pickled parts run code.
    Raises NormswapError for a source that is missing, broken, unsafe or of another kind.
    """
    if isinstance(source, nn.Module):
        if example_inputs is None:
            raise NormswapError("load: a module needs example_inputs, a tuple or dict of tensors")
        return model_from_source(module_source(source, example_inputs, dynamic_axes))
    if isinstance(source, torch.export.ExportedProgram):
        return model_from_program(source, "program")
    if isinstance(source, ir.Model):
        return model_from_onnx(source.clone(), source.graph.name or "model")
    kind, colon, rest = str(source).partition(":")
    if colon and kind in _NAMED:
        return model_from_source(_NAMED[kind](rest))
    return _from_path(Path(source), trust)


def _from_path(path: Path, trust: bool) -> Model:
    if path.is_dir():
        return model_from_source(huggingface_source(str(path)))
    suffix = path.suffix.lower()
    if not path.exists():
        raise NormswapError(f"{path}: no such file or folder; MODEL is {_FORMS}")
    if suffix == ".onnx":
        return model_from_onnx(read_onnx(path), path.name, path)
    if suffix == ".pt2":
        model = model_from_program(read_pt2(path, trust), path.name, path=path)
        known = preprocessing_of_file(path, model.inputs, read_pt2_note(path, KEY))
        done = history_of(read_pt2_note(path, HISTORY))
        return replace(model, preprocessing=known, history=done)
    if suffix in (".pt", ".pth", ".bin", ".pkl"):
        refuse_pickle(path)
    raise NormswapError(f"{path}: unknown kind of file '{suffix}'; MODEL is {_FORMS}")


def model_from_source(source: Source) -> Model:
    """The model that capturing ``source`` gives."""
    return model_from_program(
        capture(source), source.name, source.output_names, source.preprocessing
    )


_NAMED = {
    "hf": lambda rest: huggingface_source(f"hf:{rest}"),
    "timm": timm_source,
    "open_clip": open_clip_source,
}
