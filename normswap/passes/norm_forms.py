"""The forms that a norm can be written in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from normswap.errors import NormswapError
from normswap.fit.channelwise import BatchNormConstants
from normswap.graph.graph import Graph, Value
from normswap.norms.site import Site
from normswap.passes import norm_operator, norm_with_sum
from normswap.passes.insert import insert_batch_norm, insert_cast
from normswap.passes.norm_operator import replace_norm, working_dtype
from normswap.passes.norm_with_sum import replace_norm_and_sum

OPERATOR, WITH_SUM = "operator", "with_sum"
"""As one operator; as one that also computes the sum which the norm reads."""
_OPERATORS = {**norm_operator.OPERATORS, "batch_norm": "BatchNormalization"}
KINDS = tuple(_OPERATORS)
"""The kinds of norm that can be written."""


@dataclass
class ChosenForms:
    """The ``forms`` to write, why the other sites were ``skipped``, and ``notes`` on what was
    measured."""

    forms: dict[Site, str] = field(default_factory=dict)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def operator_of(site: Site, form: str) -> str:
    """The operator of a form."""
    return (_OPERATORS if form == OPERATOR else norm_with_sum.OPERATORS)[site.kind]


def refusal(graph: Graph, site: Site, form: str) -> str | None:
    """Why ``graph`` cannot hold a form; it is raised to a newer opset where it must."""
    try:
        graph.require(operator_of(site, form))
    except NormswapError as error:
        return str(error)
    return None


def write(graph: Graph, site: Site, form: str) -> list[Value]:
    """Writes a norm in a form, in its place: the new value of the norm and, with it, of the sum."""
    if form == WITH_SUM:
        return list(replace_norm_and_sum(graph, site))
    if site.kind == "batch_norm":
        return [_replace_batch_norm(graph, site)]
    return [replace_norm(graph, site, site)]


def _replace_batch_norm(graph: Graph, site: Site) -> Value:
    x, old = graph.value(site.input), graph.value(site.output)
    assert site.mean is not None  # a batch_norm site has statistics
    assert site.variance is not None
    constants = BatchNormConstants(
        weight=np.ones_like(site.mean) if site.weight is None else site.weight,
        bias=np.zeros_like(site.mean) if site.bias is None else site.bias,
        mean=site.mean,
        variance=site.variance,
        epsilon=site.epsilon,
    )
    like, name = old.producer, f"{site.name}.output"
    moved = insert_cast(graph, x, working_dtype(x, old, site), f"{site.name}.cast", like)
    moved, _ = insert_batch_norm(graph, moved, site.axes[0], constants, name, like)
    moved = insert_cast(graph, moved, old.dtype, f"{site.name}.cast_back", like)
    graph.replace_uses(old, moved)
    return moved
