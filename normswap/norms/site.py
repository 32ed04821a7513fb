"""``Site``: one located norm, as a plain value; and what it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normswap.graph.graph import Graph, Node, Value

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
_PARAMETER_NAMES = ("weight", "bias", "gamma", "beta")


@dataclass(frozen=True, eq=False)
class Site:
    """One norm in a graph.

    Attributes:
        name: the module path where the graph knows it, else the name of a value. Unique in a graph.
        kind: one of ``KINDS``. ``fold`` reports two more, which are no norms: 'scale_shift', y =
            weight * x + bias with constants per channel, and 'affine', a square linear layer
            (without its arrays).
        axes: the normalised axes of the input, non-negative; of a batch_norm its channel axis.
        normalized_shape: the sizes of ``axes``.
        epsilon: what is added to the variance, or the mean square, under the root.
        weight, bias: gamma and beta in float64, None where absent; of ``normalized_shape``, or one
            per channel [C] (batch_norm, instance_norm, group_norm).
        input, output: the names of the graph's values.
        spelling: 'op' for a single operator, else 'decomposed'.
        mean, variance: the running statistics of a batch_norm [C], in float64.
        groups: how many groups a group_norm divides its channels into.
        role: one of ``ROLES``.
        tower: 'image', 'text', 'both' or ''.
        fixed: why nothing can stand in its place: its operator does more than the norm. '' if
            something can. ``input`` is the sum that it normalises, if anything reads that, else
            the first of what the operator reads.

    Examples:
        >>> site = locate(model)[0]
        >>> site.name, site.role, site.epsilon, site.weight.shape
        ('vit.layers.0.layernorm_before', 'pre_attention', 1e-12, (48,))
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
    fixed: str = ""

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
            "fixed": self.fixed,
        }


@dataclass(frozen=True)
class Rejection:
    """A candidate that is not the norm it looks like: ``where`` it is, and the ``reason``."""

    where: str
    reason: str


@dataclass(frozen=True)
class Location:
    """The norms of a graph, and the candidates that are none, both in the order of execution."""

    sites: tuple[Site, ...]
    rejected: tuple[Rejection, ...]


def site_nodes(graph: Graph, site: Site) -> list[Node]:
    """The nodes of a site, from its input to its output, in topological order.

    A ``fixed`` one is one node, whatever else that reads.
    """
    output = graph.value(site.output)
    if site.fixed and output.producer is not None:
        return [output.producer]
    return graph.ancestors([output], stop=[graph.value(site.input)])


def site_name(nodes: Sequence[Node], constants: Iterable[Value | None]) -> str:
    """What a norm of ``nodes`` that reads ``constants`` is called, as far as the graph knows.

    The module of a parameter that only this norm reads, else the module path that a node records,
    else the name of the last node's output. Exporters share equal parameters between modules, so
    the name of one with several readers says nothing.
    """
    for value in constants:
        if value is None or value.producer is not None or len(value.uses) != 1:
            continue
        owner, _, last = value.name.rpartition(".")
        if owner and last in _PARAMETER_NAMES:
            return owner
    return next((node.scope for node in nodes if node.scope), nodes[-1].output.name)


def unique_names(sites: Sequence[Site]) -> list[str]:
    """The names of ``sites``, with '#2', '#3', ... behind a name that comes again."""
    seen: Counter[str] = Counter()
    names = []
    for site in sites:
        seen[site.name] += 1
        count = seen[site.name]
        names.append(site.name if count == 1 else f"{site.name}#{count}")
    return names
