"""Fused norms for torch, as operators in the namespace ``torch.ops.normswap``.

    layer_norm(x, weight?, bias?, eps) -> y
    rms_norm(x, weight?, eps) -> y
    add_layer_norm(branch, residual, weight?, bias?, scale?, eps) -> (y, sum)
    add_rms_norm(branch, residual, weight?, scale?, eps) -> (y, sum)

over the last axis, with sum = residual + scale * branch (LayerScale). The names that end in ``_``
work in place, for inference: ``layer_norm_(x, ...)``, and ``add_layer_norm_(branch, residual,
...)``, after which the branch holds y and the residual the sum.

Importing this package registers them and compiles nothing. On the CPU they run C, which the
system's compiler makes of the ``.c`` files here when the first one runs; on CUDA, Triton;
elsewhere, in float64, without a compiler and with ``NORMSWAP_KERNELS=torch`` in the environment,
torch's own operators. See ``operators`` for dtypes and errors.
"""

from normswap.lowering.kernels import autograd as _autograd
from normswap.lowering.kernels import operators as _operators

__all__: list[str] = []

_operators.register()
_autograd.register()
