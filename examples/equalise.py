"""A pass in one file: the worked example of docs/contributing/write-a-pass.md.

Put into ``normswap/passes/``, it is offered as ``--to equalise``, with its options, in
``--help``, in Python and in reports; no other file has to change.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normswap.graph.graph import Array, Node
from normswap.graph.operators import norm_operator
from normswap.model import Model
from normswap.norms.site import Site
from normswap.options import option
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.spread import Start, nodes_of, norm_nodes, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.norm_operator import ROW_NORMS, replace_norm
from normswap.passes.select import other_kind, select_sites


@dataclass(kw_only=True)
class Equalise(Pass):
    """y = gamma * n + beta becomes (gamma / s) * n + beta / s, and what reads y takes s.

    Exact: W y = (W diag(s)) (y / s). With s = abs(gamma) ** ``strength`` the channels behind a
    norm become alike, as a quantiser likes them (SmoothQuant, Xiao et al. 2023, from weights
    alone). Skips norms without a weight, over several axes, and those that anything but linear
    layers and convolutions reads.

    Example: ``swap(model, Equalise(strength=0.5), sites="role=pre_mlp")``
    """

    to: ClassVar[str] = "equalise"
    summary: ClassVar[str] = "exact, the gammas of norms become alike, and their readers take that."
    exact: ClassVar[bool] = True

    strength: float = option(1.0, "how far gammas become alike: 0 not at all, 1 entirely.")
    powers_of_two: bool = option(False, "scale by powers of two alone, which round nothing.")

    def run(self, model: Model) -> PassResult:
        chosen = select_sites(model.sites, self.sites)
        result = model.copy()
        for kind in sorted({s.kind for s in chosen if s.kind in ROW_NORMS}):
            result.graph.require(norm_operator(kind))  # an older ONNX file is raised to its opset
        edits, closed = WeightEdits(result.graph), norm_nodes(result.graph, model.sites)
        done: dict[Site, Array] = {}
        skipped = []
        for site in chosen:
            try:
                done[site] = self._move_scale(site, edits, closed)
            except Refusal as refusal:
                skipped.append((site, str(refusal)))
        if not done:
            return PassResult(model, False, [], skipped)
        for site, scale in reversed(done.items()):  # a norm may read the output of the one before
            assert site.weight is not None  # or there were no scale
            bias = None if site.bias is None else site.bias / scale
            replace_norm(result.graph, replace(site, weight=site.weight / scale, bias=bias), site)
        edits.write()
        result.graph.prune()
        return PassResult(result, True, list(done), skipped)

    def _move_scale(self, site: Site, edits: WeightEdits, closed: Collection[Node]) -> Array:
        """Lets the readers of a norm take the scale [C] that it loses. Raises Refusal."""
        if site.kind not in ROW_NORMS:
            raise Refusal(other_kind(site))
        if site.weight is None or len(site.axes) != 1 or not np.all(site.weight):
            raise Refusal("it has no weight per channel, or one that is 0")
        scale = np.abs(site.weight) ** self.strength
        if self.powers_of_two:
            scale = 2.0 ** np.rint(np.log2(scale))
        graph = edits.graph
        x, y = graph.value(site.input), graph.value(site.output)
        if y.rank is None:
            raise Refusal(f"'{y.name}' has no known shape")
        change = ChannelMap.along(scale, np.zeros_like(scale), site.axes[0], y.rank)
        own = frozenset(nodes_of(graph, site))
        spread(edits, Start(y, change, True, own, x, closed)).checked().act()
        return scale
