"""Evaluation-mode BatchNorms disappear into the neighbouring weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.graph.linear import linear_writing
from normswap.locate import locate
from normswap.locate.site import Site
from normswap.model import Model
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.channel_map import Action, ChannelMap
from normswap.passes.pull_up import pull_up
from normswap.passes.push_down import push_down
from normswap.passes.select import select_sites
from normswap.passes.weight_edits import WeightEdits

_LARGE_MEAN = 25.0  # deviations; measured: at 10 the exact contract holds, at 30 it may fail


@dataclass
class Fold(Pass):
    """y = s x + t with s = gamma / sqrt(var + eps) and t = beta - s mean moves into the linear
    layers, convolutions and constants around it; the BatchNorm is gone.

    Exact. Weights are computed in float64 and rounded once, however many norms they absorb. A
    BatchNorm behind a linear layer or convolution goes up into it; any other goes down into its
    readers, or up (CLIP's ln_pre: into the patch convolution, the class token and the positions).
    Skips, with the reason, a BatchNorm in training mode, one whose value is an output or feeds
    anything but linear maps, and one whose axis is not that of the neighbouring weights.
    """

    exact: ClassVar[bool] = True

    sites: str | None = None

    def __call__(self, model: Model) -> PassResult:
        before = select_sites(locate(model.graph).sites, self.sites)
        chosen = [s for s in before if s.kind == "batch_norm"]
        result = model.copy()
        graph = result.graph
        edits = WeightEdits(graph)
        done: list[Site] = []
        skipped: list[tuple[Site, str]] = []
        if self.sites is not None:
            skipped = [(s, f"it is a {s.kind}") for s in before if s.kind != "batch_norm"]
        for norm in [_norm(graph, site) for site in chosen]:  # before any name goes
            try:
                actions = _plan(graph, edits, norm)
            except Refusal as refusal:
                skipped.append((norm.site, str(refusal)))
                continue
            for act in actions:
                act()
            graph.replace_uses(norm.output, norm.first.data_input(norm.index))
            graph.prune()  # dead readers would stand in the way of the next site
            done.append(norm.site)
        if not done:
            return PassResult(model, False, [], skipped)
        notes = [note for site in done if (note := _conditioning(site))]
        edits.write()
        graph.prune()
        return PassResult(result, True, done, skipped, notes)


@dataclass(frozen=True)
class _Norm:
    """A site, whether it takes the batch's statistics, the node that reads its input as which of
    its own (the operator, a transpose or the start of a spelling), its input and its output, and
    an intermediate value that is read outside of it, if there is one."""

    site: Site
    is_training: bool
    first: Node
    index: int
    input: Value
    output: Value
    read_inside: Value | None


def _norm(graph: Graph, site: Site) -> _Norm:
    x, y = graph.value(site.input), graph.value(site.output)
    nodes = [n for n in graph.ancestors([y], stop=[x]) if n.dynamic_inputs()]
    training = any(node.attributes.get("training_mode") for node in nodes)
    first = next(node for node in nodes if x in node.inputs)
    inner = [v for n in nodes for v in n.outputs if v is not y]
    leaks = (v for v in inner if v in graph.outputs or not set(v.readers) <= set(nodes))
    return _Norm(site, training, first, first.inputs.index(x), x, y, next(leaks, None))


def _plan(graph: Graph, edits: WeightEdits, norm: _Norm) -> list[Action]:
    if norm.is_training:
        raise Refusal("it is in training mode: its statistics come from each batch")
    change = _map(norm.site)
    x = norm.input
    produced = linear_writing(graph, x) is not None or (
        x.producer is not None and x.producer.op == "Conv"
    )
    reasons = []
    for upward in (produced, not produced):
        try:
            if upward and norm.read_inside is not None:
                raise Refusal(f"'{norm.read_inside.name}' in its spelling is read elsewhere too")
            if upward:
                return pull_up(graph, edits, norm.first, norm.index, change)
            return push_down(graph, edits, norm.output, change)
        except Refusal as refusal:
            reasons.append(f"{'upward' if upward else 'downward'}: {refusal}")
    raise Refusal("; ".join(reasons))


def _conditioning(site: Site) -> str:
    """A warning where the fold is exact on paper but cancels large numbers in the model's dtype."""
    assert site.mean is not None
    assert site.variance is not None
    ratio = float(np.max(np.abs(site.mean) / np.sqrt(site.variance + site.epsilon)))
    if ratio < _LARGE_MEAN:
        return ""
    return (
        f"'{site.name}': a channel's mean is {ratio:.0f} times its deviation, which the folded "
        f"weights cancel in the model's own precision; validate the result"
    )


def _map(site: Site) -> ChannelMap:
    assert site.mean is not None  # a batch_norm site has statistics
    assert site.variance is not None
    scale = 1 / np.sqrt(site.variance + site.epsilon)
    scale = scale if site.weight is None else scale * site.weight
    shift = -scale * site.mean
    shift = shift if site.bias is None else shift + site.bias
    return ChannelMap(scale, shift, site.axes[0])
