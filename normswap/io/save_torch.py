"""Torch models to files: ``.pt2``, or ``.onnx`` through torch's exporter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch

from normswap.errors import NormswapError
from normswap.io.fx_model import export_arguments, program_from_model
from normswap.io.onnx.file import write_onnx
from normswap.io.pt2.file import write_pt2
from normswap.model import Model

_OPSET = 20  # Gelu is one operator from here on, LayerNormalization since 17


def save_torch(model: Model, path: Path, notes: Mapping[str, str]) -> None:
    """Writes ``model`` to ``path`` by its suffix, with ``notes`` by key; see ``save``."""
    if path.suffix == ".pt2":
        if model.kind != "fx":
            raise NormswapError(f"{model.name}: an ONNX model has no torch graph; save it as .onnx")
        write_pt2(program_from_model(model, model.to_inference()), path, notes)
    else:
        write_onnx(onnx_from_torch(model), path, notes)


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
