"""The norms that a module really has: observed while it runs, with roles written down by hand.

A forward hook on every normalisation module sees which of them run, in which order and how often.
What each one is for stands in a table of the family, written by someone who knows the architecture:
nothing here looks at a graph.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from normswap.demo.spelled_out import SpelledOutLayerNorm

RoleTable = Sequence[tuple[str, str]]
"""Globs on module paths with the role; the first that matches holds."""

_TORCH_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.LayerNorm, "layer_norm"),
    (SpelledOutLayerNorm, "layer_norm"),
    (nn.RMSNorm, "rms_norm"),
    (nn.GroupNorm, "group_norm"),
    # InstanceNorm is a subclass of the same base as BatchNorm, so it comes first
    (nn.modules.instancenorm._InstanceNorm, "instance_norm"),
    (nn.modules.batchnorm._BatchNorm, "batch_norm"),
)
_RMS_NAME = re.compile(r"rms_?norm", re.IGNORECASE)  # each library has a class of its own


@dataclass(frozen=True)
class TrueNorm:
    """One call of a normalisation module; ``call`` counts the calls of the same module from 1.

    ``channels``: the sizes of its parameters. They are what is normalised for layer_norm and
    rms_norm. ``epsilon``, ``role`` and ``tower`` are what ``Site`` calls so.
    """

    path: str
    call: int
    kind: str
    channels: tuple[int, ...]
    epsilon: float
    role: str
    tower: str

    @property
    def site_name(self) -> str:
        """What a graph that knows its modules calls this norm."""
        return self.path if self.call == 1 else f"{self.path}#{self.call}"


def observe(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    roles: RoleTable,
    text: Sequence[str] = (),
) -> tuple[TrueNorm, ...]:
    """The norms that run when ``module`` does, in the order of execution.

    ``text``: globs on the paths of the text tower; everything else is the image tower.
    Raises LookupError for a norm without a role in the table, and for a line that is never used.
    """
    ran: list[str] = []
    kinds = {path: kind for path, child in module.named_modules() if (kind := _kind(child))}
    children = dict(module.named_modules())
    handles = [
        children[path].register_forward_hook(lambda *_, path=path: ran.append(path))
        for path in kinds
    ]
    # The fused fast path of torch's own encoder layer runs no submodules.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            module(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    if idle := [glob for glob, _ in roles if not any(fnmatchcase(path, glob) for path in ran)]:
        raise LookupError(f"no norm that runs matches {', '.join(idle)}")
    seen: Counter[str] = Counter()
    norms = []
    for path in ran:
        seen[path] += 1
        norm = children[path]
        tower = "text" if any(fnmatchcase(path, glob) for glob in text) else "image"
        role = _role(path, roles)
        norms.append(
            TrueNorm(path, seen[path], kinds[path], _channels(norm), _epsilon(norm), role, tower)
        )
    return tuple(norms)


def _kind(module: nn.Module) -> str | None:
    for base, kind in _TORCH_KINDS:
        if isinstance(module, base):
            return kind
    return "rms_norm" if _RMS_NAME.search(type(module).__name__) else None


def _channels(norm: Any) -> tuple[int, ...]:
    shape = getattr(norm, "normalized_shape", None)
    if shape is not None:
        return tuple(shape)
    count = getattr(norm, "num_features", None) or getattr(norm, "num_channels", None)
    return (count,) if count else tuple(norm.weight.shape)


def _epsilon(norm: Any) -> float:
    for name in ("eps", "epsilon", "variance_epsilon"):
        if hasattr(norm, name):
            value = getattr(norm, name)
            # nn.RMSNorm without an epsilon takes the one of its input's dtype
            return float(torch.finfo(norm.weight.dtype).eps if value is None else value)
    raise LookupError(f"{type(norm).__name__} has no epsilon")


def _role(path: str, roles: RoleTable) -> str:
    for glob, role in roles:
        if fnmatchcase(path, glob):
            return role
    raise LookupError(f"no role is written down for {path}")
