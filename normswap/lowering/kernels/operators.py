"""The operators of ``torch.ops.normswap`` declared, and which code runs for which tensors.

``x``, ``branch`` and ``residual`` are float tensors [..., C]; ``weight``, ``bias`` and ``scale``
are [C], of the tensors' dtype or float32. Results are contiguous and have the input's dtype, for a
sum the wider of the two; statistics are float32 (float64 for float64). Operators in place raise
RuntimeError if a tensor requires grad while grad mode is on, if branch and residual differ in
dtype or share memory. All raise RuntimeError for shapes, devices or dtypes that do not fit.

On the CPU, C (``operators.c``) takes contiguous float32, bfloat16 and float16, with parameters of
the same dtype or float32, and passes everything else on to the operators called ``..._fallback``:
made contiguous and of one dtype it tries again, and what it still does not take runs in torch's own
operators, which also say what is wrong.

Autocast changes nothing: the tensors keep their dtype and the statistics are float32 anyway, where
torch's own layer_norm would widen its output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from normswap.lowering.kernels import cuda, eager
from normswap.lowering.kernels.library import kernels
from normswap.lowering.kernels.signatures import NORMS, Norm, check, check_no_grad

LIBRARY = torch.library.Library("normswap", "DEF")
Code = Callable[..., Any]

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def register() -> None:
    """Declares the operators and what runs them; autograd is ``autograd.register``'s.

    C takes the CPU's kernels over when it is loaded, which the first call does.
    """
    for norm in NORMS.values():
        _declare(
            norm.schema,
            fake=partial(_fake, norm),
            cuda_code=cuda.forward(norm),
            by_torch=(by_torch := partial(eager.forward, norm)),
            fallback=partial(_tried_again, norm.name, by_torch, len(norm.tensors)),
        )
        _declare(
            norm.schema_in_place,
            fake=partial(_fake_in_place, norm),
            cuda_code=_for_inference(norm, cuda.forward_in_place(norm)),
            by_torch=_for_inference(norm, partial(eager.forward_in_place, norm)),
            fallback=partial(_tried_out_of_place, norm),
        )
        # A kernel of its own for autograd would cost as much as the work at batch 1.
        LIBRARY.impl(f"{norm.name}_", torch.library.fallthrough_kernel, "Autograd")
        if not norm.with_sum:
            _declare(
                norm.schema_backward,
                fake=partial(_fake_backward, norm),
                cuda_code=cuda.backward(norm),
                by_torch=(by_torch := partial(eager.backward, norm)),
                fallback=partial(_tried_again, f"{norm.name}_backward", by_torch, 1),
            )


def _declare(schema: str, fake: Code, cuda_code: Code, by_torch: Code, fallback: Code) -> None:
    """An operator, and the one that C calls, from below autograd, with what it does not take."""
    name, _, inputs = schema.partition("(")
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"normswap::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, cuda_code, "CUDA")
    LIBRARY.impl(name, _after_loading(name, by_torch), "CompositeExplicitAutograd")
    LIBRARY.define(f"{name}_fallback({inputs}")
    LIBRARY.impl(f"{name}_fallback", fallback, "CPU")
    LIBRARY.impl(f"{name}_fallback", torch.library.fallthrough_kernel, "Autograd")


def _after_loading(name: str, code: Code) -> Code:
    """``code``, but on the CPU what is loaded then."""
    operator = getattr(torch.ops.normswap, name).default

    def run(*given: Any) -> Any:
        if given[0].device.type == "cpu" and kernels() is not None:
            return operator.redispatch(_CPU, *given)
        return code(*given)

    return run


def _for_inference(norm: Norm, code: Code) -> Code:
    name, written = f"{norm.name}_", len(norm.tensors)

    def run(*given: Any) -> None:
        check_no_grad(name, given)
        code(*given)
        # Below autograd nobody else tells it that a tensor which it saved has changed.
        increment_version(given[:written])

    return run


# -- what runs when C declines -------------------------------------------------------------------


def _tried_again(name: str, by_torch: Code, alike: int, *given: Any) -> Any:
    """Contiguous and with the first ``alike`` tensors of one dtype; else torch's own operators."""
    tidy = [a.contiguous() if isinstance(a, Tensor) else a for a in given]
    dtype = eager.result_dtype(tidy[:alike])
    tidy[:alike] = [tensor.to(dtype) for tensor in tidy[:alike]]
    if all(a is b for a, b in zip(tidy, given, strict=True)):
        return by_torch(*given)
    return getattr(torch.ops.normswap, name).default(*tidy)


def _tried_out_of_place(norm: Norm, *given: Any) -> None:
    name = f"{norm.name}_"
    check_no_grad(name, given)
    if torch.is_grad_enabled():  # C cannot tell that nothing requires grad
        with torch.no_grad():
            getattr(torch.ops.normswap, name).default(*given)
        return
    eager.write_back(norm, getattr(torch.ops.normswap, norm.name).default, given)


# -- shapes and dtypes for fake tensors ----------------------------------------------------------


def _fake(norm: Norm, *given: Any) -> Any:
    arguments = norm.arguments(given)
    check(norm.name, arguments)
    tensors = arguments[0]
    y = tensors[0].new_empty(tensors[0].shape, dtype=eager.result_dtype(tensors))
    return (y, torch.empty_like(y)) if norm.with_sum else y


def _fake_in_place(norm: Norm, *given: Any) -> None:
    name = f"{norm.name}_"
    check_no_grad(name, given)
    check(name, norm.arguments(given))


def _fake_backward(norm: Norm, grad: Tensor, grad_sum: Any, x: Tensor, *_: Any) -> Any:
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = [x.new_empty(x.shape[-1:], dtype=dtype) for _ in range(2 if norm.centred else 1)]
    return x.new_empty(x.shape), *sums
