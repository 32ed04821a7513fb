"""``load``: a ``Model`` from a file, a folder, a name or a module.

ONNX needs no torch: it is imported only for the other sources.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from normswap.errors import NormswapError, blaming, first_line, plain, root_cause
from normswap.graph.graph import Value, is_floating
from normswap.graph.onnx.graph import OnnxGraph, read_graph
from normswap.graph.onnx.loading import refusal
from normswap.io.bounds import LARGEST_EXAMPLE
from normswap.io.notes import with_notes
from normswap.io.onnx import read_onnx
from normswap.model import InputSpec, Model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from normswap.io.preprocessing import Preprocessing

_FORMS = (
    ".onnx, .pt2, a Hugging Face folder, hf:ID, timm:NAME, open_clip:NAME, or weights with --arch"
)
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_NAMED = ("hf:", "timm:", "open_clip:")


def load(
    source: str | Path | nn.Module | torch.export.ExportedProgram | ir.Model,
    *,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_axes: dict[str, dict[int, str]] | None = None,
    arch: str | None = None,
    preprocessing: Preprocessing | None = None,
    trust: bool = False,
) -> Model:
    """A model from ``source``, with its batch dynamic where the model allows it.

    Args:
        source: a path to ``.onnx`` or ``.pt2``, a Hugging Face folder, ``hf:ID``, ``timm:NAME``,
            ``open_clip:NAME``, a file of weights, a module, an ExportedProgram or an
            ``onnx_ir.Model``. Behind a timm or open_clip name: ``?checkpoint=FILE``,
            ``?pretrained=false``, ``?img_size=N``; behind a timm name also ``?num_classes=N`` and
            ``?in_chans=N``, joined by ``&``.
        example_inputs: for a module, and required there: a tuple of what its ``forward`` takes, or
            a dict of it by name. What holds no tensor is a constant of the model from then on.
        example_kwargs: for a module: what ``forward`` takes by name besides a tuple of
            ``example_inputs``.
        dynamic_axes: for a module: names for the sizes that may change, by input and axis.
        arch: for a file of weights (a state dict: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin``,
            ``.ckpt`` of ``torch.save``, of which nothing runs), and required there: ``timm:NAME``
            or ``open_clip:NAME``, with options as in ``source``.
        preprocessing: how images are prepared for the model, in place of what its own
            configuration says. It goes with the model into files.
        trust: let a ``.pt2`` file's pickled parts run code. Only for files that you made yourself.

    Returns:
        A ``Model`` in evaluation mode. Weights are read when a pass touches them. The outputs of a
        module that returns a mapping, a dataclass or a named tuple have the names of its fields;
        those that are None, or no tensors, are left out.

    Raises:
        NormswapError: a source that is missing, broken, unsafe or of another kind; weights that do
            not fit ``arch``.

    Examples:
        >>> model = load("clip.onnx")
        >>> model = load(module, example_inputs=(images,), dynamic_axes={"x": {0: "batch"}})
        >>> model = load(bert, example_inputs={"input_ids": ids, "attention_mask": mask})
        >>> model = load("tuned.pth", arch="timm:vit_tiny_patch16_224?num_classes=10")
    """
    if arch is not None and not takes_arch(source):
        raise NormswapError(
            f"{_called(source)}: only a file of weights needs an architecture; leave it out"
        )
    if isinstance(source, ir.Model):
        name = source.graph.name or "model"
        model = model_from_onnx(cloned(source, name), name)
    elif isinstance(source, str | os.PathLike):
        model = _model_called(os.fspath(source), arch, trust)
    else:
        from normswap.io.torch_model import model_from_torch

        model = model_from_torch(source, example_inputs, dynamic_axes, example_kwargs)
    return model if preprocessing is None else replace(model, preprocessing=preprocessing)


def _model_called(text: str, arch: str | None, trust: bool) -> Model:
    path, named = Path(text), text.startswith(_NAMED)
    if named or path.is_dir():
        from normswap.io.torch_model import model_from_source, named_source

        return model_from_source(named_source(text if named else str(path)))
    if not path.exists():
        raise NormswapError(f"{path}: no such file or folder; MODEL is {_FORMS}")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return model_from_onnx(read_onnx(path), path.name, path)
    if suffix in _WEIGHTS:
        return _model_of_weights(path, arch)
    if suffix not in (".pt2", ".pkl"):
        raise NormswapError(f"{path}: unknown kind of file '{suffix}'; MODEL is {_FORMS}")
    from normswap.io import pt2
    from normswap.io.torch_model import model_from_program

    if suffix != ".pt2":
        pt2.refuse_pickle(path)
    model = model_from_program(pt2.read_pt2(path, trust), path.name, path=path)
    return with_notes(model, lambda key: pt2.read_pt2_note(path, key))


def takes_arch(source: Any) -> bool:
    """Whether ``source`` is a file of weights, by its name: it does not say for which model."""
    if not isinstance(source, str | os.PathLike):
        return False
    text = os.fspath(source)
    weights = Path(text).suffix.lower() in _WEIGHTS
    return weights and not text.startswith(_NAMED) and not Path(text).is_dir()


def _called(source: Any) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__


def _model_of_weights(path: Path, arch: str | None) -> Model:
    if arch is None:
        config = path.parent / "config.json"
        folder = f", or name the folder {path.parent}" if config.is_file() else ""
        raise NormswapError(
            f"{path}: holds weights, which do not say of which model; name its architecture with "
            f"--arch timm:NAME or open_clip:NAME (arch= in Python){folder}"
        )
    from normswap.io.torch_model import model_from_source, source_of_weights

    return model_from_source(source_of_weights(path, arch))


def cloned(model: ir.Model, name: str) -> ir.Model:
    """A copy of a model. Raises NormswapError, which begins with ``name``, for a damaged one."""
    try:
        return model.clone()
    except Exception as error:  # whatever a damaged graph or function leads to
        reason = plain(first_line(root_cause(error)))
        raise NormswapError(f"{name}: is damaged ({reason}); export it again") from error


def model_from_onnx(model: ir.Model, name: str, path: Path | None = None) -> Model:
    """The model of an ``onnx_ir.Model``, which it owns from then on.

    Example inputs are drawn (seeded): normal for floats, zeros for integers. The preprocessing is
    that of its metadata, else of a configuration beside ``path``. Raises NormswapError where an
    input has no rank or no dtype.
    """
    with blaming(str(path or name), lambda: refusal(model)):
        loaded = _model_of(read_graph(model), name, path)
        return with_notes(loaded, model.metadata_props.get)


def _model_of(graph: OnnxGraph, name: str, path: Path | None) -> Model:
    specs = []
    for value in graph.inputs:
        raw: ir.Value = value.raw
        if raw.shape is None or value.dtype is None or not isinstance(raw.type, ir.TensorType):
            raise NormswapError(
                f"its input '{plain(value.name)}' has no declared shape or type, or is no tensor"
            )
        shape = tuple(_size(d, value.name, axis) for axis, d in enumerate(raw.shape))
        specs.append(InputSpec(value.name, shape, value.dtype))
    count = sum(math.prod(value.shape or ()) for value in graph.inputs)
    if count > LARGEST_EXAMPLE:
        sizes = ", ".join(f"{v.name} {'x'.join(map(str, v.shape or ()))}" for v in graph.inputs)
        raise NormswapError(
            f"its inputs have {count:,} elements ({plain(sizes)}), and {LARGEST_EXAMPLE:,} "
            "are the most that is tried; declare smaller or dynamic sizes"
        )
    random = np.random.default_rng(0)
    return Model(
        graph=graph,
        name=name,
        inputs=tuple(specs),
        output_names=tuple(v.name for v in graph.outputs),
        examples={v.name: _example(v, random) for v in graph.inputs},
        path=path,
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
