"""Weight and bias of norms move into the weights behind them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Node
from normswap.graph.operators import norm_operator
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.narrow import anything, held_where_made
from normswap.passes.algebra.spread import Start, nodes_of, norm_nodes, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.norm_operator import ROW_NORMS, replace_norm
from normswap.passes.select import select_sites, why_left


@dataclass(kw_only=True)
class FoldAffine(Pass):
    """y = n * gamma + beta of a LayerNorm or an RMSNorm n: what reads y reads n instead.

    Exact: W y + b = (W diag(gamma)) n + (b + W beta), computed in float64 and rounded once. Between
    the norm and the linear layers and convolutions may lie what the map goes through by the table
    in ``algebra/rules.py``. The norm becomes one operator without weight and bias; where ONNX
    demands a weight, all norms of one width share a vector of ones.
    Skips a norm, whole, if anything but linear layers and convolutions reads it (a residual sum,
    an attention, an output of the model), and one over several axes.

    Attributes:
        sites: which norms; see ``select_sites``. All by default.

    Examples:
        >>> FoldAffine(sites="role=pre_mlp")(model).model
    """

    exact: ClassVar[bool] = True

    def run(self, model: Model) -> PassResult:
        located = model.sites
        chosen = select_sites(located, self.sites)
        skipped = [(s, why) for s in chosen if (why := why_unfoldable(s))]
        todo = [s for s in chosen if not why_unfoldable(s)]
        result = model.copy()
        for kind in sorted({site.kind for site in todo}):
            try:
                result.graph.require(norm_operator(kind))
            except NormswapError as error:
                skipped += [(s, str(error)) for s in todo if s.kind == kind]
                todo = [s for s in todo if s.kind != kind]
        edits = WeightEdits(result.graph)
        closed = norm_nodes(result.graph, located)
        done = []
        for site in todo:
            try:
                absorb_affine(edits, site, closed)
            except Refusal as refusal:
                skipped.append((site, str(refusal)))
            else:
                done.append(site)
        order = {site: number for number, site in enumerate(chosen)}
        skipped.sort(key=lambda pair: order[pair[0]])
        if not done:
            return PassResult(model, False, [], skipped)
        for site in reversed(done):  # a norm may read the output of the one before it
            replace_norm(result.graph, replace(site, weight=None, bias=None), site)
        edits.write()
        result.graph.prune()
        return PassResult(result, True, done, skipped)


def why_unfoldable(site: Site) -> str:
    """Why nothing of a norm can be folded, to be seen from itself; '' if something may."""
    if why := why_left(site, ROW_NORMS):
        return why
    if not has_affine(site):
        return "it has neither weight nor bias"
    return "" if len(site.axes) == 1 else "it normalises over several axes"


def has_affine(site: Site) -> bool:
    """Whether its weight and bias do anything."""
    plain = site.weight is None or bool(np.all(site.weight == 1))
    return not plain or (site.bias is not None and bool(np.any(site.bias)))


def readers_take(edits: WeightEdits, site: Site, closed: Collection[Node]) -> bool:
    """Whether the readers of a norm over one axis can take over any affine map of its output."""
    graph, size = edits.graph, site.normalized_shape[0]
    x, y = graph.value(site.input), graph.value(site.output)
    if y.rank is None:
        return False
    probe = np.diag(np.linspace(1.25, 1.75, size)) + 1 / size
    change = ChannelMap.along(probe, np.ones(size), site.axes[0], y.rank)
    own = frozenset(nodes_of(graph, site))
    start = Start(y, change, True, own, x, closed, held=held_where_made(x))
    return not spread(edits, start).refusal


def absorb_affine(edits: WeightEdits, site: Site, closed: Collection[Node]) -> None:
    """Lets the readers of a norm over one axis take over its weight and bias.

    ``closed``: nodes that take none, such as those of norms. Raises Refusal where a reader cannot.
    """
    graph = edits.graph
    x, y = graph.value(site.input), graph.value(site.output)
    if y.rank is None:
        raise Refusal(f"'{y.name}' has no known shape")
    size, (axis,) = site.normalized_shape[0], site.axes
    weight = np.ones(size) if site.weight is None else site.weight
    bias = np.zeros(size) if site.bias is None else site.bias
    change = ChannelMap.along(weight, bias, axis, y.rank)
    own = frozenset(nodes_of(graph, site))
    start = Start(y, change, True, own, x, closed, held=anything)
    spread(edits, start).checked().act()
