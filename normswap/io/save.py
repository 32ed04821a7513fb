"""``save``: a ``Model`` to a file.

ONNX needs no torch: it is imported only for torch models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from normswap.errors import NormswapError
from normswap.graph.graph import BFLOAT16
from normswap.graph.onnx.graph import OnnxGraph
from normswap.io.atomic import check_writable
from normswap.io.notes import notes_of
from normswap.io.onnx import remove_softmax_guards, write_onnx
from normswap.model import Model

if TYPE_CHECKING:
    import onnx_ir


def save(model: Model, path: str | Path) -> None:
    """Writes the model to ``path``, whole or not at all.

    ONNX models go to ``.onnx`` with their names, metadata, opset and external-data layout; torch
    models to ``.pt2``, or to ``.onnx`` through torch's exporter. The model's preprocessing and
    history go into the file.

    Args:
        model: of ``load``, or of the result of a pass.
        path: a file that ends in ``.onnx`` or ``.pt2``; it may be the one that ``model`` is from.

    Raises:
        NormswapError: another suffix, a path that cannot be written, or an ONNX model that is to
            become ``.pt2``.

    Examples:
        >>> save(swap(load("vit.onnx"), to="fused").model, "fused.onnx")
    """
    path = Path(path)
    check_output(path)
    with model.at_fault():
        _write(model, path)


def _write(model: Model, path: Path) -> None:
    if path.suffix == ".onnx" and isinstance(model.graph, OnnxGraph):
        write_onnx(model.graph.model, path, notes_of(model))
        return
    from normswap.io.pt2 import write_pt2
    from normswap.io.torch_model import onnx_from_torch, program_from_model

    if path.suffix == ".pt2":
        if model.kind != "fx":
            raise NormswapError(f"{model.name}: an ONNX model has no torch graph; save it as .onnx")
        write_pt2(program_from_model(model, model.to_inference()), path, notes_of(model))
    else:
        exported = onnx_from_torch(model)
        if any(value.dtype == BFLOAT16 for value in model.graph.values()):
            _check_types(model, exported)
        write_onnx(exported, path, notes_of(model))


def _check_types(model: Model, exported: onnx_ir.Model) -> None:
    """Raises NormswapError where the exporter has written bfloat16 into operators that have none in
    their opset."""
    from normswap.graph.onnx.loading import refusal

    if (why := refusal(exported)) and "NOT_IMPLEMENTED" not in why:
        raise NormswapError(
            f"{model.name}: torch's exporter writes bfloat16 where ONNX has none ({why}); save it "
            "as .onnx first and convert that"
        )


def as_onnx(model: Model) -> Model:
    """A torch model as the ONNX model that ``save`` would write; any other as it is."""
    if model.kind != "fx":
        return model
    from normswap.io.load import load
    from normswap.io.torch_model import onnx_from_torch

    return replace(
        load(onnx_from_torch(model)),
        name=model.name,
        preprocessing=model.preprocessing,
        classes=model.classes,
        history=model.history,
    )


def without_softmax_guards(model: Model) -> tuple[Model, list[str]]:
    """An ONNX model without the guards that torch's exporter puts behind a softmax, where no row
    can need them, and notes on them; any other as it is: ``save`` leaves them out."""
    if not isinstance(model.graph, OnnxGraph):
        return model, []
    from normswap.io.load import load

    cleaned = model.to_onnx_ir()
    guards = remove_softmax_guards(cleaned)
    if not guards.removed:
        return model, guards.notes
    return replace(
        load(cleaned),
        name=model.name,
        preprocessing=model.preprocessing,
        classes=model.classes,
        history=model.history,
    ), guards.notes


def check_output(path: Path) -> None:
    """Raises NormswapError, before any work, for a path that ``save`` cannot write."""
    if path.suffix not in (".onnx", ".pt2"):
        raise NormswapError(f"{path}: an output file ends in .onnx or .pt2")
    check_writable(path)
