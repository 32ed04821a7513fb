"""How the mean over the channels leaves a stream that only LayerNorms read.

With P = I - 1 1^T / C, the subtraction of that mean, LayerNorm(P x) = LayerNorm(x). So P moves up
from a LayerNorm's input by the rules of ``change_of_variables.py``, as a change without an inverse:
whatever writes to the stream absorbs it, and all that reads the stream must be among these:

| operator | rule |
|---|---|
| LayerNorm over exactly these channels | gives the same for P x |
| what ``change_of_variables.py`` lets through (sums, Concat of tokens, ``moves.py``) | through |
| a product with constants per channel that nothing else reads (LayerScale) | P diag(s) goes up \
into the writer, the product is gone |
| a norm that writes to the stream (CLIP's ln_pre) | its mean is subtracted behind it |
| anything else | refuses |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.norms.site import Site
from normswap.passes.algebra.affine_regions import nodes_of
from normswap.passes.algebra.change_of_variables import Change, Start
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal


class Readers:
    """The LayerNorms of a graph that do not see the mean of what they read."""

    def __init__(self, graph: Graph, sites: Sequence[Site]) -> None:
        self.located = tuple(sites)
        self.reasons: dict[Site, str] = {}
        nodes = {site: nodes_of(graph, site) for site in sites if site.kind == "layer_norm"}
        inside = {node for site in nodes for node in nodes[site]}
        self.outputs = {graph.value(site.output): site for site in nodes}
        self.sites: dict[Node, list[tuple[Value, Site]]] = {}
        for site, own in nodes.items():
            inner = [v for n in own for v in n.outputs if v is not graph.value(site.output)]
            leak = next((v for v in inner if not set(v.readers) <= inside), None)
            leak = leak or next((v for v in inner if v in graph.outputs), None)
            if graph.value(site.input).shape is None or graph.value(site.output).shape is None:
                self.reasons[site] = "the shape of its input is not known"
            elif len(site.axes) != 1:
                self.reasons[site] = "it normalises over several axes"
            elif leak is not None:
                self.reasons[site] = f"'{leak.name}' in its spelling is read elsewhere too"
            else:
                for node in own:
                    self.sites.setdefault(node, []).append((graph.value(site.input), site))


@dataclass
class Centring(Change):
    """The change of one norm's input to P x; ``subtractions``: the values behind which the mean
    has to be subtracted, ``scalings``: the products that are gone, ``refusal``: why it cannot be
    made."""

    readers: Readers = field(kw_only=True)
    refusal: str = ""
    subtractions: dict[Value, int] = field(default_factory=dict)
    scalings: dict[Node, None] = field(default_factory=dict)

    def reaches(self, site: Site) -> bool:
        """Whether the input of ``site`` loses its mean."""
        value = self.graph.value(site.input)
        return value in self.known and self._is_mean(value, site)

    def actions(self) -> list[Callable[[], None]]:
        return [*super().actions(), *(partial(self._remove, node) for node in self.scalings)]

    def _remove(self, node: Node) -> None:
        self.graph.replace_uses(node.output, node.dynamic_inputs()[0])

    def _visit(self, node: Node) -> None:
        if node not in self.readers.sites:
            super()._visit(node)
            return
        for value in (v for v in node.outputs if v in self.known):
            self._subtract_behind(node, value)
        for value in (v for v in node.dynamic_inputs() if v in self.known):
            if not any(value is x and self._is_mean(value, s) for x, s in self.readers.sites[node]):
                raise self._refusal(node)

    def _is_mean(self, value: Value, site: Site) -> bool:
        """Whether what ``value`` loses is the mean that ``site`` subtracts, and no more."""
        mean = mean_subtraction(site.normalized_shape[0], site.axes[0], value.rank or 0)
        return self.known[value].is_same(mean)

    def _subtract_behind(self, node: Node, value: Value) -> None:
        site = self.readers.outputs.get(value)
        if site is None or not self._is_mean(value, site):
            raise self._refusal(node)
        self.subtractions[value] = site.axes[0]

    def _multiple(self, node: Node) -> None:
        scales, known = self._scales(node), self.known.get(node.output)
        if scales is None or known is None:
            super()._multiple(node)
            return
        (x,) = node.dynamic_inputs()
        linear = known.linear * scales  # of the columns, which are behind all other axes
        self._set(x, ChannelMap(linear, known.shift, axis=known.axis))
        self.scalings[node] = None

    def _scales(self, node: Node) -> Array | None:
        """The [C] by which LayerScale multiplies a value that loses its mean; None for another
        product."""
        data, known = node.dynamic_inputs(), self.known.get(node.output)
        if (
            node.op != "Mul"
            or known is None
            or len(data) != 1
            or data[0].shape != node.output.shape
        ):
            return None
        factor = self._factor(node)[1]
        sizes = (1,) * (known.rank - factor.ndim) + factor.shape
        wide = [axis for axis, size in enumerate(sizes) if size > 1]
        return factor.reshape(-1) if wide == [known.axis] else None


def mean_subtraction(size: int, axis: int, rank: int) -> ChannelMap:
    """P = I - 1 1^T / C along ``axis``."""
    return ChannelMap.along(np.eye(size) - 1 / size, np.zeros(size), axis, rank)


def centred(graph: Graph, edits: WeightEdits, site: Site, readers: Readers) -> Centring:
    """The change by which the input of ``site`` loses its mean, or why it cannot; not yet made.

    ``site``: none of those that ``readers.reasons`` names.
    """
    x = graph.value(site.input)
    change = mean_subtraction(site.normalized_shape[0], site.axes[0], len(x.shape or ()))
    start = Start(x, change, owed=False)
    whole = Centring(graph, edits, start, readers=readers)
    whole.refusal = _spread(whole)
    if not whole.refusal:
        return whole
    part = Centring(graph, edits, replace(start, part=True), readers=readers)
    part.refusal = whole.refusal if _spread(part) else ""
    return part


def _spread(change: Centring) -> str:
    try:
        change.spread()
        change.actions()  # which asks every weight
    except Refusal as refusal:
        return str(refusal)
    return ""
