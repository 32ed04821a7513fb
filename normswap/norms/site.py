"""``Site``: one located norm, as a plain value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm")
ROLES = (
    "embedding",
    "pre_attention",
    "pre_mlp",
    "post_attention",
    "post_mlp",
    "final",
    "query_key",
    "downsample",
    "other",
)


@dataclass(frozen=True, eq=False)
class Site:
    """One norm in a graph.

    ``name``: the module path where the graph knows it. ``axes``: the normalised axes of the input
    (for batch_norm: its channel axis). ``normalized_shape``: their sizes. ``weight`` and ``bias``:
    gamma and beta in float64, None where absent, of ``normalized_shape`` or (batch_norm,
    instance_norm, group_norm) one per channel; ``mean`` and ``variance``: a batch_norm's running
    statistics. ``groups``: of a group_norm's channels. ``input`` and ``output``: names of graph
    values. ``spelling``: 'op' or 'decomposed'. ``tower``: 'image', 'text', 'both' or ''.

    Only ``fold`` tells of two more kinds, which are no norms: 'scale_shift', y = weight * x + bias
    of constants per channel, and 'affine', a square linear layer (without its arrays).
    """

    name: str
    kind: str
    axes: tuple[int, ...]
    normalized_shape: tuple[int, ...]
    epsilon: float
    weight: np.ndarray | None
    bias: np.ndarray | None
    input: str
    output: str
    spelling: str
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    groups: int | None = None
    role: str = "other"
    tower: str = ""

    def to_json(self) -> dict[str, Any]:
        """The site for ``--json``: affine parameters by their sizes, all else as it is."""
        return {
            "name": self.name,
            "kind": self.kind,
            "role": self.role,
            "tower": self.tower,
            "axes": list(self.axes),
            "normalized_shape": list(self.normalized_shape),
            "epsilon": self.epsilon,
            "weight": None if self.weight is None else list(self.weight.shape),
            "bias": None if self.bias is None else list(self.bias.shape),
            "groups": self.groups,
            "input": self.input,
            "output": self.output,
            "spelling": self.spelling,
        }


@dataclass(frozen=True)
class Rejection:
    """A candidate that is no norm, or none that is known, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Location:
    """What ``locate`` found in a graph, in the order of execution."""

    sites: tuple[Site, ...]
    rejected: tuple[Rejection, ...]
