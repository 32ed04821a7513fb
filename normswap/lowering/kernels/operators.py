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

from normswap.lowering.kernels import cuda, eager, fakes, fallback
from normswap.lowering.kernels.arguments import check_no_grad
from normswap.lowering.kernels.library import kernels

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
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def register() -> None:
    """Declares the operators and what runs them; autograd is ``autograd.register``'s.

    C takes the CPU's kernels over when it is loaded, which the first call does.
    """
    for schema in _FUNCTIONAL:
        name = _declare(schema)
        LIBRARY.impl(name, getattr(cuda.BACKEND, name), "CUDA")
        LIBRARY.impl(name, _after_loading(name, getattr(eager, name)), "CompositeExplicitAutograd")
        _define(f"{name}_fallback", schema, fallback.functional(name))
    for schema in _IN_PLACE:
        name = _declare(schema)
        written = schema.count("!")
        for_cuda = _for_inference(name, getattr(cuda.BACKEND, name), written)
        otherwise = _for_inference(name, getattr(eager, name), written)
        LIBRARY.impl(name, for_cuda, "CUDA")
        LIBRARY.impl(name, _after_loading(name, otherwise), "CompositeExplicitAutograd")
        _define(f"{name}_fallback", schema, fallback.in_place(name))
        # A kernel of its own for autograd would cost as much as the work at batch 1.
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")


def _declare(schema: str) -> str:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"normswap::{name}", getattr(fakes, name), lib=LIBRARY)
    return name


def _define(name: str, like: str, kernel: Callable[..., Any]) -> None:
    """An operator that only C calls, from below autograd."""
    LIBRARY.define(name + like[like.index("(") :])
    LIBRARY.impl(name, kernel, "CPU")
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")


def _after_loading(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, but on the CPU what is loaded then."""
    operator = getattr(torch.ops.normswap, name).default

    def run(*arguments: Any) -> Any:
        if arguments[0].device.type == "cpu" and kernels() is not None:
            return operator.redispatch(_CPU, *arguments)
        return kernel(*arguments)

    return run


def _for_inference(name: str, kernel: Callable[..., None], written: int) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        if torch.is_grad_enabled():
            check_no_grad(name, *(a for a in arguments if isinstance(a, Tensor)))
        kernel(*arguments)
        # Below autograd nobody else tells it that a tensor which it saved has changed.
        increment_version(arguments[:written])

    return run
