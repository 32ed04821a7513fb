"""``Convolution``: a convolution with a constant kernel and a constant bias or none, of any size
and number of groups. One with a kernel of size 1 may be a ``Linear`` as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.graph.linear import put_constant

_BIAS = 2


@dataclass(eq=False)
class Convolution:
    """Channels are axis 1 of input and output. The kernel is [out, in / groups, ...]."""

    axis = output_axis = 1

    graph: Graph
    node: Node
    sizes: tuple[int, int]  # (out, in)
    groups: int

    @property
    def input(self) -> Value:
        return self.node.data_input()

    @property
    def output(self) -> Value:
        return self.node.output

    @property
    def name(self) -> str:
        value = self.node.data_input(1)
        return value.name if value.producer is None else self.output.name

    @property
    def pads_with_zeros(self) -> bool:
        attributes = self.node.attributes
        auto = attributes.get("auto_pad", "NOTSET")
        return any(attributes.get("pads") or ()) or auto not in ("NOTSET", "VALID")

    @cached_property
    def kernel(self) -> Array:
        """In float64."""
        return self._load(1)

    @cached_property
    def bias(self) -> Array | None:
        """[out] in float64, or None."""
        return None if self.node.input(_BIAS) is None else self._load(_BIAS)

    def write(self, kernel: Array, bias: Array | None) -> None:
        """Replaces kernel and bias; one without a bias gains it where ``bias`` is not None."""
        put_constant(self.graph, self.node, 1, kernel)
        if bias is None:
            return
        if self.node.input(_BIAS) is not None:
            put_constant(self.graph, self.node, _BIAS, bias)
            return
        name = f"{self.name.removesuffix('.weight')}.bias"
        value = self.graph.add_constant(bias.astype(self.node.data_input(1).dtype), name)
        self.graph.set_input(self.node, _BIAS, value)

    def _load(self, index: int) -> Array:
        array = self.graph.constant(self.node.data_input(index))
        assert array is not None  # that is what makes it a Convolution
        return array.astype(np.float64)


def convolution_at(graph: Graph, node: Node) -> Convolution | None:
    """The Convolution at ``node``, or None if it is none."""
    if node.op != "Conv" or node.data_input().is_constant:
        return None
    kernel, bias = node.data_input(1), node.input(_BIAS)
    if not kernel.is_constant or kernel.shape is None or (bias and not bias.is_constant):
        return None
    groups = int(node.attributes.get("group", 1))
    return Convolution(graph, node, (kernel.shape[0], kernel.shape[1] * groups), groups)
