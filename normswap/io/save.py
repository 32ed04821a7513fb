"""``save``: a ``Model`` to a file; ``export``: to a file of either kind."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx_ir as ir
import torch

from normswap.errors import NormswapError
from normswap.graph.onnx import OnnxGraph
from normswap.io import history
from normswap.io.atomic import check_writable
from normswap.io.fx_model import export_arguments, program_from_model
from normswap.io.onnx import write_onnx
from normswap.io.preprocessing import Preprocessing
from normswap.io.preprocessing_files import KEY
from normswap.io.pt2 import write_pt2
from normswap.model import Model

_OPSET = 20  # Gelu is one operator from here on, LayerNormalization since 17
_log = logging.getLogger(__name__)


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
    if path.suffix == ".pt2":
        write_pt2(program_from_model(model), path, notes)
    elif isinstance(model.graph, OnnxGraph):
        write_onnx(model.graph.model, path, notes)
    else:
        write_onnx(onnx_from_torch(model), path, notes)


def check_output(path: Path) -> None:
    """Raises NormswapError, before any work, for a path that ``save`` cannot write."""
    if path.suffix not in (".onnx", ".pt2"):
        raise NormswapError(f"{path}: an output file ends in .onnx or .pt2")
    check_writable(path)


def onnx_from_torch(model: Model) -> ir.Model:
    """The torch model as ``onnx_ir.Model``, by torch's (dynamo) exporter at opset 20.

    Raises NormswapError where the exporter cannot translate it, or for a model that is ONNX.
    """
    module = model.to_torch()
    args, kwargs, shapes = export_arguments(model, module)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                input_names=[spec.name for spec in model.inputs],
                output_names=list(model.output_names),
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise NormswapError(f"{model.name}: torch's ONNX exporter fails: {reason}") from error
    assert program is not None
    _name_dimensions(program.model, model)
    return program.model


def _name_dimensions(exported: ir.Model, model: Model) -> None:
    """Gives the exporter's symbols (s77) the names that the model's dynamic sizes have."""
    names: dict[object, str] = {}
    for value, spec in zip(exported.graph.inputs, model.inputs, strict=True):
        for dim, size in zip(value.shape or (), spec.shape, strict=False):
            if isinstance(dim, ir.SymbolicDim) and isinstance(size, str):
                names[dim.value] = size
    values = [*exported.graph.inputs, *(v for n in exported.graph for v in n.outputs)]
    for value in values:
        if value.shape is not None:
            dims = [
                names.get(d.value, d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape
            ]
            value.shape = ir.Shape(dims)
