"""``save``: a ``Model`` to a file.

ONNX needs no torch: it is imported where a model does.
"""

from __future__ import annotations

from pathlib import Path

from normswap.errors import NormswapError
from normswap.graph.onnx.graph import OnnxGraph
from normswap.io import history
from normswap.io.atomic import check_writable
from normswap.io.onnx.file import write_onnx
from normswap.io.preprocessing import Preprocessing
from normswap.io.preprocessing_files import KEY
from normswap.model import Model


def save(model: Model, path: str | Path) -> None:
    """Writes the model to ``path``, whole or not at all.

    ONNX models go to ``.onnx`` with their names, metadata, opset and external-data layout; torch
    models to ``.pt2``, or to ``.onnx`` through torch's exporter. The model's preprocessing and
    history go into the file. Raises NormswapError for another suffix, a path that cannot be
    written, or an ONNX model that is to become ``.pt2``.
    """
    path = Path(path)
    check_output(path)
    known = model.preprocessing
    notes = {KEY: known.to_json()} if isinstance(known, Preprocessing) else {}
    if model.history:
        notes[history.KEY] = history.history_text(model.history)
    if path.suffix == ".onnx" and isinstance(model.graph, OnnxGraph):
        write_onnx(model.graph.model, path, notes)
    else:
        from normswap.io.save_torch import save_torch

        save_torch(model, path, notes)


def check_output(path: Path) -> None:
    """Raises NormswapError, before any work, for a path that ``save`` cannot write."""
    if path.suffix not in (".onnx", ".pt2"):
        raise NormswapError(f"{path}: an output file ends in .onnx or .pt2")
    check_writable(path)
