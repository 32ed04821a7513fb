"""The zoo's models as torch captures them: whole, decomposed, symbolically traced, in half."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

from normswap.errors import quiet
from tests.zoo.model import ZooModel
from tests.zoo.models import build

_TALKATIVE = ("torch.export", "torch.fx", "torch.onnx", "onnxscript", "onnx_ir")


class NotExportable(Exception):
    """Torch itself cannot produce this form of this model; the text says why."""


@functools.lru_cache
def zoo_model(name: str) -> ZooModel:
    return build(name)


@functools.lru_cache
def half_model(name: str) -> ZooModel:
    """The model in float16, inputs too. Raises NotExportable where torch cannot run it."""
    zoo = build(name)
    if any(p.dtype == torch.float16 for p in zoo.module.parameters()):
        raise NotExportable("it is in half precision already")
    zoo.module.half()
    zoo.inputs = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in zoo.inputs.items()
    }
    with torchs_own_errors("running it in half precision"), torch.no_grad():
        zoo.module(**zoo.inputs)
    return zoo


def model_in(name: str, half: bool) -> ZooModel:
    return half_model(name) if half else zoo_model(name)


@functools.lru_cache(maxsize=8)
def program(name: str, half: bool) -> torch.export.ExportedProgram:
    """The captured model, for all that start from one; its batch is dynamic where it can be."""
    zoo = model_in(name, half)
    dynamic = {key: {0: torch.export.Dim.AUTO} for key in zoo.inputs}
    with torchs_own_errors("torch.export"), exporting():
        return torch.export.export(
            zoo.module, (), kwargs=dict(zoo.inputs), dynamic_shapes=dynamic, strict=False
        )


def decomposed(name: str) -> torch.export.ExportedProgram:
    """The captured model in the operators that torch decomposes everything into."""
    whole = program(name, False)
    with torchs_own_errors("run_decompositions"), exporting():
        return whole.run_decompositions()


def traced(name: str) -> fx.GraphModule:
    """The model by ``torch.fx.symbolic_trace``, which knows no shapes and no dtypes."""
    zoo = zoo_model(name)
    with torchs_own_errors("torch.fx.symbolic_trace"), exporting():
        return fx.symbolic_trace(zoo.module)


@contextmanager
def exporting() -> Iterator[None]:
    """What exporters need: no gradients, nothing printed, and layers spelled in plain operators.

    The fused fast path of torch's own attention and encoder layers has no ONNX counterpart.
    A failing capture prints its whole graph.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad(), quiet(*_TALKATIVE, stderr=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def torchs_own_errors(step: str) -> Iterator[None]:
    """Turns whatever torch raises in the block into NotExportable with the first line of it."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        line = next(iter(str(cause).strip().splitlines()), "")
        raise NotExportable(f"{step}: {type(cause).__name__}: {line[:200]}") from None
