"""The zoo's models as normswap Models, captured and exported in different ways."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir

from normswap import Model, load
from tests.effort import ALL
from tests.zoo.captures import (
    NotExportable,
    decomposed,
    half_model,
    model_in,
    program,
    traced,
    zoo_model,
)
from tests.zoo.exporters import dynamo, torchscript
from tests.zoo.models import BUILDERS, FAMILIES

__all__ = [
    "FORMATS",
    "FORMS",
    "FX",
    "FX_FORMS",
    "ONNX",
    "ONNX_FORMS",
    "NotExportable",
    "captured_families",
    "exported",
    "formats_of",
    "forms_of",
    "model_as",
    "why_not",
    "zoo_model",
]

FX = "fx"
# exporter and opset; TorchScript below opset 17 spells LayerNorm out
ONNX = ("dynamo-18", "dynamo-20", "dynamo-23", "torchscript-14", "torchscript-17")
FORMATS = (FX, *ONNX)  # in which every pass is tested

FX_FORMS = (FX, "fx-decomposed", "fx-traced", "fx-half")
ONNX_FORMS = (
    "torchscript-11",
    "torchscript-13",
    "torchscript-14",
    "torchscript-16",
    "torchscript-17",
    "torchscript-14-half",
    "dynamo-18",
    "dynamo-20",
    "dynamo-23",
    "dynamo-18-half",
)
FORMS = (*FX_FORMS, *ONNX_FORMS)  # in which norms are looked for
# Exports take most of the time. So norms are looked for in every other model as captured, in one of
# four in a form that takes a capture and more, and in one of four in one that takes no capture.
# Passes are tested as captured and as one of torch's exporters writes the model, in turn.
EXPORTED_IN_TURN = ("torchscript-14", "dynamo-18")
IN_TURN = tuple(form for form in FORMS if form != FX)
TRACED = tuple(f for f in IN_TURN if f.startswith("torchscript") or f == "fx-traced")
CAPTURED = tuple(form for form in IN_TURN if form not in TRACED)
# A ViT and a CLIP, as both write them: one with norms spelled out, one with masks.
ALL_EXPORTERS_FOR = ("spelled_vit", "hf_clip")


def forms_of(name: str) -> tuple[str, ...]:
    """The forms that the norms of ``name`` are looked for in; all with NORMSWAP_ZOO=all."""
    if ALL:
        return FORMS
    four, number = divmod(list(FAMILIES).index(name), 4)
    turns = (FX, CAPTURED[four % len(CAPTURED)], FX, TRACED[four % len(TRACED)])
    chosen = {turns[number], *(formats_of(name) if name in BUILDERS else ())}
    return tuple(form for form in FORMS if form in chosen)


def captured_families() -> list[str]:
    """The models whose norms are looked for as captured, which other tests can share."""
    return [name for name in FAMILIES if FX in forms_of(name)]


def formats_of(name: str) -> tuple[str, ...]:
    """The formats in which every pass is tested on ``name``; all with NORMSWAP_ZOO=all."""
    if ALL:
        return FORMATS
    if name in ALL_EXPORTERS_FOR:
        return (FX, *EXPORTED_IN_TURN)
    return (FX, EXPORTED_IN_TURN[list(FAMILIES).index(name) % len(EXPORTED_IN_TURN)])


@functools.lru_cache
def model_as(name: str, form: str) -> Model:
    """The zoo's model ``name`` in the given form; passes leave it as it is.

    Raises NotExportable where torch cannot produce that form.
    """
    if form not in FX_FORMS:
        return load(ir.serde.deserialize_model(exported(name, form)))
    if form == "fx-decomposed":
        return load(decomposed(name))
    zoo = half_model(name) if form == "fx-half" else zoo_model(name)
    module = traced(name) if form == "fx-traced" else zoo.module
    dynamic = {key: {0: "batch"} for key in zoo.inputs}
    return load(module, example_inputs=dict(zoo.inputs), dynamic_axes=dynamic)


def exported(name: str, form: str) -> onnx.ModelProto:
    """The ONNX file of ``name`` in a form of ``ONNX_FORMS``, as torch's exporter writes it.

    Raises NotExportable where the exporter fails.
    """
    result = _attempt(name, form)
    if isinstance(result, str):
        raise NotExportable(result)
    return result


def why_not(name: str, form: str) -> str | None:
    """Why torch cannot produce this form of this model, found by trying; None where it can."""
    try:
        if form in ONNX_FORMS:
            exported(name, form)
        elif form == "fx-decomposed":
            decomposed(name)
        elif form == "fx-traced":
            traced(name)
        else:
            model_in(name, half=form == "fx-half")
    except NotExportable as reason:
        return str(reason)
    return None


@functools.lru_cache
def _attempt(name: str, form: str) -> onnx.ModelProto | str:
    """The file, or why there is none: kept as well, for failing takes as long."""
    exporter, opset, *half = form.split("-")
    try:
        zoo = model_in(name, bool(half))
        if exporter == "torchscript":
            return torchscript(zoo, int(opset))
        return dynamo(zoo, program(name, bool(half)), int(opset))
    except NotExportable as reason:
        return str(reason)
