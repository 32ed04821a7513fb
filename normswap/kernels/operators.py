"""The operators of ``torch.ops.normswap``: schemas, and which code runs for which tensors.

``x``, ``branch`` and ``residual`` are float tensors [..., C]; ``weight``, ``bias`` and ``scale``
are [C], of the tensors' dtype or float32. Results are contiguous and have the input's dtype, for a
sum the wider of the two; statistics are float32 (float64 for float64). Operators in place raise
RuntimeError if a tensor requires grad while grad mode is on, if branch and residual differ in
dtype or share memory. All raise RuntimeError for shapes, devices or dtypes that do not fit.

Autocast changes nothing: the tensors keep their dtype and the statistics are float32 anyway, where
torch's own layer_norm would widen its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from normswap.kernels import cpu, cuda, eager, fakes
from normswap.kernels.arguments import check_no_grad

LIBRARY = torch.library.Library("normswap", "DEF")

_FUNCTIONAL = (
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    "rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor",
    "add_layer_norm(Tensor branch, Tensor residual, Tensor? weight, Tensor? bias, Tensor? scale,"
    " float eps) -> (Tensor, Tensor)",
    "add_rms_norm(Tensor branch, Tensor residual, Tensor? weight, Tensor? scale, float eps)"
    " -> (Tensor, Tensor)",
    "layer_norm_backward(Tensor grad, Tensor? grad_sum, Tensor x, Tensor? weight, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    "rms_norm_backward(Tensor grad, Tensor? grad_sum, Tensor x, Tensor? weight, float eps)"
    " -> (Tensor, Tensor)",
)
_IN_PLACE = (
    "layer_norm_(Tensor(a!) x, Tensor? weight, Tensor? bias, float eps) -> ()",
    "rms_norm_(Tensor(a!) x, Tensor? weight, float eps) -> ()",
    "add_layer_norm_(Tensor(a!) branch, Tensor(b!) residual, Tensor? weight, Tensor? bias,"
    " Tensor? scale, float eps) -> ()",
    "add_rms_norm_(Tensor(a!) branch, Tensor(b!) residual, Tensor? weight, Tensor? scale,"
    " float eps) -> ()",
)
_IMPLEMENTATIONS: dict[str, Any] = {
    "CPU": cpu.BACKEND,
    "CUDA": cuda.BACKEND,
    "CompositeExplicitAutograd": eager,
}


def register() -> None:
    """Declares the operators and what runs them; autograd is ``autograd.register``'s."""
    for schema in _FUNCTIONAL:
        name = _declare(schema)
        for key, kernels in _IMPLEMENTATIONS.items():
            LIBRARY.impl(name, getattr(kernels, name), key)
    for schema in _IN_PLACE:
        name = _declare(schema)
        for key, kernels in _IMPLEMENTATIONS.items():
            kernel = _for_inference(name, getattr(kernels, name), schema.count("!"))
            LIBRARY.impl(name, kernel, key)
        # A kernel of its own for autograd would cost as much as the work at batch 1.
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")


def _declare(schema: str) -> str:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"normswap::{name}", getattr(fakes, name), lib=LIBRARY)
    return name


def _for_inference(name: str, kernel: Callable[..., None], written: int) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        if torch.is_grad_enabled():
            check_no_grad(name, *(a for a in arguments if isinstance(a, Tensor)))
        kernel(*arguments)
        # Below autograd nobody else tells it that a tensor which it saved has changed.
        increment_version(arguments[:written])

    return run
