"""The models that the demo starts from: each as it is, and with its LayerNorms spelled out."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from normswap.io.atomic import atomic_path
from normswap.io.load import load
from normswap.io.save import save
from normswap.io.sources import Source, evaluating
from normswap.io.sources.huggingface import huggingface_source
from normswap.io.torch_model import model_from_source
from normswap.model import Model

_OPSET = 14  # the exporter has LayerNormalization since 17; before, it spells it out


class SpelledOutLayerNorm(nn.Module):
    """``norm`` over the last axis as many exporters and hand-written models have it: several
    operators, with its own parameters."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        normal: torch.Tensor = centred / torch.sqrt(variance + self.epsilon)
        return normal * self.weight + self.bias


def spell_out(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with every ``nn.LayerNorm`` in it spelled out."""
    result = copy.deepcopy(module)
    for parent in list(result.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, SpelledOutLayerNorm(child))
    return result


def torch_variants(folder: Path) -> tuple[Source, Model, Model]:
    """A Hugging Face folder's module, its graph, and the same with its LayerNorms spelled out."""
    source = huggingface_source(str(folder))
    spelled_out = replace(source, module=spell_out(source.module))
    return source, model_from_source(source), model_from_source(spelled_out)


def onnx_variants(source: Source, model: Model, original: Path, spelled_out: Path) -> list[Model]:
    """``model`` exported to two files by torch's exporters: the current one, which keeps a
    LayerNorm as one operator, and the older one, which spells it out at its opset 14.
    """
    save(model, original)
    dynamic = {
        spec.name: {axis: s for axis, s in enumerate(spec.shape) if isinstance(s, str)}
        for spec in model.inputs
    }
    with warnings.catch_warnings(), evaluating(source.module), atomic_path(spelled_out) as file:
        warnings.simplefilter("ignore")  # that it is deprecated, and remarks on the trace
        torch.onnx.export(
            source.module,
            source.args,
            str(file),
            kwargs=source.kwargs,
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(dynamic),
            output_names=list(model.output_names),
            dynamic_axes=dynamic,
        )
    return [load(original), load(spelled_out)]
