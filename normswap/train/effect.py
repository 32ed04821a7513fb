"""Weights that no output depends on, as training sees them.

Softmax does not see a bias of its keys, nor a BatchNorm in training one in front of it. The
gradient of such a weight is rounding and nothing else. AdamW scales it up like any other, so that
the weight wanders at random: another way on each machine, and with each number of processes.
"""

from __future__ import annotations

from torch import Tensor, nn

_ROUNDING = 1e-11  # of the largest gradient; in float64 rounding is some 1e-16 of it


def without_effect(module: nn.Module, loss: Tensor) -> list[str]:
    """The names of the parameters of ``module``, in float64, whose gradient of ``loss`` is zero but
    for rounding. Parameters without a gradient are not among them."""
    loss.backward()
    sizes = {
        name: float(parameter.grad.abs().max())
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.numel()
    }
    largest = max(sizes.values(), default=0.0)
    return [name for name, size in sizes.items() if size <= _ROUNDING * largest]
