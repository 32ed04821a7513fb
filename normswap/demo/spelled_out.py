"""The models that the demo starts from: each as it is, and with its LayerNorms spelled out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from torch import nn

from normswap.io.atomic import atomic_path
from normswap.io.load import load
from normswap.io.notes import PREPROCESSING
from normswap.io.preprocessing import Preprocessing
from normswap.io.sources import Source, evaluating
from normswap.io.sources.huggingface import huggingface_source
from normswap.io.torch_model import model_from_source
from normswap.model import Model

OPSETS = {"original": 17, "spelled-out": 14}
"""ONNX has LayerNormalization since opset 17; before, exporters spell it out."""


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


def torch_variants(folder: Path) -> tuple[Model, Model]:
    """The graph of a Hugging Face folder's module, and the same with its LayerNorms spelled out."""
    source = huggingface_source(str(folder))
    spelled_out = replace(source, module=spell_out(source.module))
    return model_from_source(source), model_from_source(spelled_out)


def onnx_variants(folder: Path, files: Mapping[str, Path]) -> list[Model]:
    """A Hugging Face folder's module exported to each of ``files``, by the names of ``OPSETS``."""
    source = huggingface_source(str(folder))
    return [_exported(source, opset, files[name]) for name, opset in OPSETS.items()]


def _exported(source: Source, opset: int, path: Path) -> Model:
    """By torch's older exporter, which needs a tenth of the time of the current one."""
    assert isinstance(source.preprocessing, Preprocessing)
    with warnings.catch_warnings(), evaluating(source.module), atomic_path(path) as file:
        warnings.simplefilter("ignore")  # that it is deprecated, and remarks on the trace
        torch.onnx.export(
            source.module,
            source.args,
            str(file),
            kwargs=source.kwargs,
            dynamo=False,
            opset_version=opset,
            input_names=list(source.dynamic_axes),
            output_names=list(source.output_names),
            dynamic_axes=source.dynamic_axes,
        )
        proto = onnx.load(file)
        onnx.helper.set_model_props(proto, {PREPROCESSING: source.preprocessing.to_json()})
        onnx.save(proto, file)
    return load(path)
