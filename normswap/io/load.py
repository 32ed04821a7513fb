"""``load``: a ``Model`` from a file, a folder, a name or a module.

ONNX needs no torch: it is imported where a source does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from normswap.errors import NormswapError
from normswap.io.onnx.file import read_onnx
from normswap.io.onnx.model import model_from_onnx
from normswap.model import Model

if TYPE_CHECKING:
    import torch
    from torch import nn

NAMED = ("hf", "timm", "open_clip")
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
    if isinstance(source, ir.Model):
        return model_from_onnx(source.clone(), source.graph.name or "model")
    if isinstance(source, str | os.PathLike):
        return _from_text(os.fspath(source), trust)
    from normswap.io.load_torch import model_from_torch

    return model_from_torch(source, example_inputs, dynamic_axes)


def _from_text(source: str, trust: bool) -> Model:
    kind, colon, rest = source.partition(":")
    if colon and kind in NAMED:
        from normswap.io.load_torch import model_from_name

        return model_from_name(kind, rest)
    return _from_path(Path(source), trust)


def _from_path(path: Path, trust: bool) -> Model:
    if path.is_dir():
        from normswap.io.load_torch import model_from_folder

        return model_from_folder(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise NormswapError(f"{path}: no such file or folder; MODEL is {_FORMS}")
    if suffix == ".onnx":
        return model_from_onnx(read_onnx(path), path.name, path)
    if suffix == ".pt2":
        from normswap.io.load_torch import model_from_pt2

        return model_from_pt2(path, trust)
    if suffix in (".pt", ".pth", ".bin", ".pkl"):
        from normswap.io.pt2.file import refuse_pickle

        refuse_pickle(path)
    raise NormswapError(f"{path}: unknown kind of file '{suffix}'; MODEL is {_FORMS}")
