"""Who took part in a validation: the models, their files and norms, and what made the report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from normswap.io.onnx import data_files_of
from normswap.model import Model
from normswap.norms.site import Site
from normswap.parity.report import ModelSummary, Norm, Provenance
from normswap.runtimes.machine import machine

_LIBRARIES = ("normswap", "torch", "onnx", "onnx-ir", "onnxruntime", "openvino", "numpy")
_CHUNK = 2**22  # bytes


def model_summary(model: Model, runtime: str, sites: Sequence[Site]) -> ModelSummary:
    """``sites``: the located norms of ``model``. Its files are read whole, for their hash."""
    files = _files(model.path)
    norms = [Norm(s.name, s.kind, s.role, s.tower, math.prod(s.normalized_shape)) for s in sites]
    return ModelSummary(
        model.name,
        model.kind,
        None if model.path is None else str(model.path),
        runtime,
        sum(file.stat().st_size for file in files) if files else None,
        _sha256(files) if files else None,
        norms,
        list(model.history),
    )


def provenance(command: str | None = None) -> Provenance:
    """``command``: the one that makes the report again."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Provenance(versions, machine(), torch.get_num_threads(), command)


def _files(path: Path | None) -> list[Path]:
    """The file of a model and those of its data that are there, in a fixed order."""
    if path is None or not path.is_file():
        return []
    others = data_files_of(path) if path.suffix == ".onnx" else set()
    return [path, *sorted(file for file in others if file.is_file())]


def _sha256(files: Sequence[Path]) -> str:
    """Of the contents of all ``files`` in turn, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
