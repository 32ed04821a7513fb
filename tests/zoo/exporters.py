"""Torch's two ONNX exporters: the one that traces TorchScript, and the one behind torch.export."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import math
import os
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import onnx
import torch

from tests.zoo.captures import exporting, torchs_own_errors
from tests.zoo.model import ZooModel

_FUSED_ATTENTION = 14  # the first opset for which TorchScript's exporter knows torch's operator


def torchscript(zoo: ZooModel, opset: int) -> onnx.ModelProto:
    """The file of the old exporter. Raises NotExportable where it fails."""
    buffer, names = io.BytesIO(), list(zoo.inputs)
    with torchs_own_errors("torch.onnx.export"), exporting(), _silent(), _attention_for(opset):
        torch.onnx.export(
            copy.deepcopy(zoo.module),  # tracing leaves tensors behind in some attributes
            (),
            buffer,  # type: ignore[arg-type]  # takes files, whatever its annotation says
            kwargs=dict(zoo.inputs),
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=list(zoo.outputs),
            dynamic_axes={n: {0: "batch"} for n in names},
        )
    return onnx.load_from_string(buffer.getvalue())


def dynamo(zoo: ZooModel, captured: torch.export.ExportedProgram, opset: int) -> onnx.ModelProto:
    """The file of the new exporter. Raises NotExportable where it fails."""
    with torchs_own_errors("torch.onnx.export"), exporting():
        result = torch.onnx.export(
            captured,
            (),
            kwargs=dict(zoo.inputs),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(zoo.inputs),
            output_names=list(zoo.outputs),
        )
    assert result is not None
    return result.model_proto


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drops what is printed, by C++ too: a failing TorchScript export prints its whole graph."""
    sys.stdout.flush()
    sys.stderr.flush()
    held = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what C has buffered would appear later
        for number, old in enumerate(held, start=1):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)


def _attention_for(opset: int) -> contextlib.AbstractContextManager[Any]:
    """Below the opset that has it, attention in plain operators, as models of that time had it."""
    if opset >= _FUSED_ATTENTION:
        return contextlib.nullcontext()
    return mock.patch("torch.nn.functional.scaled_dot_product_attention", _plain_attention)


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    assert not enable_gqa
    scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value
