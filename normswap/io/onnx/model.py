"""A ``Model`` from an ``onnx_ir.Model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from normswap.errors import NormswapError
from normswap.graph.graph import Value, is_floating
from normswap.graph.onnx.graph import read_graph
from normswap.io.history import KEY as HISTORY
from normswap.io.history import history_of
from normswap.io.preprocessing_files import KEY, preprocessing_of_file
from normswap.model import InputSpec, Model


def model_from_onnx(model: ir.Model, name: str, path: Path | None = None) -> Model:
    """The model of an ``onnx_ir.Model``, which it owns from then on.

    Example inputs are drawn (seeded): normal for floats, zeros for integers. The preprocessing is
    that of its metadata, else of a configuration beside ``path``. Raises NormswapError where an
    input has no rank or no dtype.
    """
    graph = read_graph(model)
    specs = []
    for value in graph.inputs:
        raw: ir.Value = value.raw
        if raw.shape is None or value.dtype is None:
            raise NormswapError(f"{name}: its input '{value.name}' has no declared shape or type")
        shape = tuple(_size(d, value.name, axis) for axis, d in enumerate(raw.shape))
        specs.append(InputSpec(value.name, shape, value.dtype))
    random = np.random.default_rng(0)
    return Model(
        graph=graph,
        name=name,
        inputs=tuple(specs),
        output_names=tuple(v.name for v in graph.outputs),
        examples={v.name: _example(v, random) for v in graph.inputs},
        preprocessing=preprocessing_of_file(path, specs, model.metadata_props.get(KEY)),
        path=path,
        history=history_of(model.metadata_props.get(HISTORY)),
    )


def _size(dim: Any, name: str, axis: int) -> int | str:
    if isinstance(dim, int):
        return dim
    return str(dim.value) if dim.value is not None else f"{name}_{axis}"


def _example(value: Value, random: np.random.Generator) -> np.ndarray:
    shape = value.shape or ()  # a declared shape, with sizes for its dynamic dimensions
    if is_floating(value.dtype):
        return random.standard_normal(shape).astype(value.dtype)
    return np.zeros(shape, value.dtype)
