"""Which linear layers of two models are the same one, in one format or two, renamed or not."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from normswap.graph.graph import Graph, Value
from normswap.graph.linear import convolution_at, linear_at

_ENOUGH = 0.5  # of the layers of the smaller model that names must match, to be trusted


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
            sizes = convolution.kernel.shape
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
