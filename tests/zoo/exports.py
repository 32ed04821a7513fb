"""The zoo's models as normswap Models, captured and exported in different ways."""

from __future__ import annotations

import functools
import io
import warnings

import onnx_ir as ir
import torch

from normswap import Model, load
from tests.zoo.models import ZooModel, build

FX = "fx"
# exporter and opset; TorchScript below opset 17 spells LayerNorm out
ONNX = ("dynamo-18", "dynamo-20", "dynamo-23", "torchscript-14", "torchscript-17")
FORMATS = (FX, *ONNX)


@functools.lru_cache
def zoo_model(name: str) -> ZooModel:
    return build(name)


@functools.lru_cache
def model_as(name: str, form: str) -> Model:
    """The zoo's model ``name`` in the given format; passes leave it as it is."""
    zoo = zoo_model(name)
    if form == FX:
        dynamic = {key: {0: "batch"} for key in zoo.inputs}
        return load(zoo.module, example_inputs=dict(zoo.inputs), dynamic_axes=dynamic)
    return load(ir.serde.deserialize_model(_exported(name, form)))


def _exported(name: str, form: str) -> object:
    import onnx

    zoo = zoo_model(name)
    exporter, _, opset = form.partition("-")
    names = list(zoo.inputs)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if exporter == "torchscript":
                buffer = io.BytesIO()
                torch.onnx.export(
                    zoo.module,
                    (),
                    buffer,
                    kwargs=dict(zoo.inputs),
                    dynamo=False,
                    opset_version=int(opset),
                    input_names=names,
                    output_names=list(zoo.outputs),
                    dynamic_axes={n: {0: "batch"} for n in names},
                )
                return onnx.load_from_string(buffer.getvalue())
            program = torch.onnx.export(
                zoo.module,
                (),
                kwargs=dict(zoo.inputs),
                dynamo=True,
                verbose=False,
                opset_version=int(opset),
                input_names=names,
                output_names=list(zoo.outputs),
                dynamic_shapes={n: {0: torch.export.Dim.DYNAMIC} for n in names},
            )
            assert program is not None
            return program.model_proto
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
