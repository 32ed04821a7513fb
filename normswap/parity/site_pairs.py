"""The norms of two models, matched: which values say how close the models are at each."""

from __future__ import annotations

import difflib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Graph, Value
from normswap.graph.linear import convolution_at, linear_at
from normswap.norms.site import Site

_CLOSE = 1e-3  # relative; gammas and betas in half precision are still the same
_ENOUGH = 0.5  # of the norms or layers of the smaller model that names must match to be trusted


@dataclass(frozen=True)
class SitePair:
    """A norm of the reference and the values to compare: its output (``at`` is 'output') or that
    of the linear layer ``at`` behind it. ``twin``: the norm in its place, if any."""

    site: Site
    twin: Site | None
    at: str
    ours: Value
    theirs: Value


@dataclass(frozen=True)
class Side:
    """One model's graph, its norms and its outputs in the order in which both are compared."""

    graph: Graph
    sites: Sequence[Site]
    outputs: Sequence[Value]


def pair_sites(reference: Side, candidate: Side) -> tuple[list[SitePair], list[tuple[str, str]]]:
    """The matched norms of the reference in order, and the others with the reason.

    Norms are the same where names agree, or, in models that share few names, where order and
    parameters do. Equal parameters and axes: the norms' outputs are compared. Otherwise gamma and
    beta may have moved, or the layout is another, and what counts is the first linear layer or
    output of the model behind the norm.
    """
    same = _same_sites(reference.sites, candidate.sites)
    own = {layer.output: layer for layer in layers(reference.graph)}
    other = counterparts(list(own.values()), layers(candidate.graph))
    ends = dict(zip(reference.outputs, candidate.outputs, strict=True))
    pairs, unmatched = [], []
    for site in reference.sites:
        twin = same.get(site)
        output = reference.graph.value(site.output)
        if twin is not None and twin.axes == site.axes and _equal_parameters(site, twin):
            theirs = candidate.graph.value(twin.output)
            pairs.append(SitePair(site, twin, "output", output, theirs))
            continue
        behind = _behind(output, own, other, ends)
        if behind is None:
            unmatched.append((site.name, "no linear layer behind it has a match in the candidate"))
        else:
            pairs.append(SitePair(site, twin, *behind))
    return pairs, unmatched


def _same_sites(ours: Sequence[Site], theirs: Sequence[Site]) -> dict[Site, Site]:
    names = Counter(site.name for site in theirs)
    named = {site.name: site for site in theirs if names[site.name] == 1}
    found = {
        site: named[site.name]
        for site in ours
        if site.name in named and named[site.name].normalized_shape == site.normalized_shape
    }
    if len(found) >= _ENOUGH * min(len(ours), len(theirs)):
        return found
    keys: list[Site] = []  # one for each set of parameters
    sides = [[_key(site, keys) for site in side] for side in (ours, theirs)]
    distinct = len({*sides[0]}) > 1
    if not distinct and len(ours) != len(theirs):
        return {}  # they all look the same: nothing says which one is missing
    blocks = difflib.SequenceMatcher(None, sides[0], sides[1], autojunk=False).get_matching_blocks()
    return {ours[block.a + i]: theirs[block.b + i] for block in blocks for i in range(block.size)}


def _key(site: Site, known: list[Site]) -> int:
    for index, other in enumerate(known):
        if _equal_parameters(site, other):
            return index
    known.append(site)
    return len(known) - 1


def _equal_parameters(site: Site, other: Site) -> bool:
    """Whether both give outputs of one scale and shift, if their inputs are the same stream."""
    if site.normalized_shape != other.normalized_shape or "batch_norm" in (site.kind, other.kind):
        return False
    pairs = ((site.weight, other.weight, 1.0), (site.bias, other.bias, 0.0))
    return all(_close(a, b, neutral) for a, b, neutral in pairs)


def _close(a: np.ndarray | None, b: np.ndarray | None, neutral: float) -> bool:
    if a is None and b is None:
        return True
    a = np.full_like(b, neutral) if a is None else a
    b = np.full_like(a, neutral) if b is None else b
    scale = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)))
    return bool(a.size == b.size and np.abs(a.reshape(-1) - b.reshape(-1)).max() <= _CLOSE * scale)


def _behind(
    value: Value,
    own: Mapping[Value, Layer],
    other: Mapping[Layer, Layer],
    ends: Mapping[Value, Value],
) -> tuple[str, Value, Value] | None:
    """The first linear layer or output of the model that ``value`` flows into unchanged."""
    for reached in _flow(value, own):
        layer = own.get(reached)
        if layer is not None and layer in other and reached is not value:
            return layer.label, reached, other[layer].output
        if reached in ends:
            return f"output {reached.name}", reached, ends[reached]
    return None


def _flow(value: Value, own: Mapping[Value, Layer]) -> Iterator[Value]:
    """``value``, what moves of it give, and the linear layers that read those; breadth first."""
    products = {layer.name: output for output, layer in own.items()}
    queue, seen = deque([value]), {value}
    while queue:
        reached = queue.popleft()
        yield reached
        for node, index in reached.uses:
            if node.output.name in products:
                following = [products[node.output.name]]
            elif index == 0 and node.operator.keeps_channels:
                following = node.outputs
            else:
                continue
            fresh = [v for v in following if v not in seen]
            seen.update(fresh)
            if reached not in own or reached is value:  # nothing behind a linear layer counts
                queue.extend(fresh)


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution: the path of its module ('' where the graph knows none), the
    name of the product's output, its weight's sizes and what it computes."""

    path: str
    name: str
    sizes: tuple[int, ...]
    output: Value

    @property
    def label(self) -> str:
        return self.path or self.name


def layers(graph: Graph) -> list[Layer]:
    """The linear layers and convolutions with constant weights, in the order of execution."""
    found = []
    for node in graph.nodes:
        if node.output.is_constant:
            continue
        if linear := linear_at(graph, node):
            found.append(Layer(node.scope, node.output.name, linear.sizes, linear.output))
        elif convolution := convolution_at(graph, node):
            sizes = convolution.stored_weight.shape or ()
            found.append(Layer(node.scope, node.output.name, sizes, convolution.output))
    return found


def counterparts(ours: Sequence[Layer], theirs: Sequence[Layer]) -> dict[Layer, Layer]:
    """The candidate's layer for each of the reference's that has one.

    Matched by module path, or by the name of what they compute, where the weights' sizes agree;
    models that share few names by their order and the weights' sizes.
    """
    found: dict[Layer, Layer] = {}
    for key in ("path", "name"):
        known, others = _unique(ours, key), _unique(theirs, key)
        for name, layer in known.items():
            other = others.get(name)
            if other is not None and other.sizes == layer.sizes:
                found.setdefault(layer, other)
    if len(found) >= _ENOUGH * min(len(ours), len(theirs)):
        return found
    sizes = [[layer.sizes for layer in side] for side in (ours, theirs)]
    blocks = difflib.SequenceMatcher(None, sizes[0], sizes[1], autojunk=False).get_matching_blocks()
    return {ours[block.a + i]: theirs[block.b + i] for block in blocks for i in range(block.size)}


def _unique(side: Sequence[Layer], key: str) -> dict[str, Layer]:
    names = [getattr(layer, key) for layer in side]
    counts = Counter(names)
    return {n: layer for n, layer in zip(names, side, strict=True) if n and counts[n] == 1}
