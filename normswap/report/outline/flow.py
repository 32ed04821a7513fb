"""How data flows through one tower: the operators that compute with it, and who reads whom.

Sizes, masks, indices and constants are no data. A norm is one vertex, however it is spelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Graph, Node, Value, is_floating
from normswap.norms.site import Site


@dataclass(frozen=True, eq=False)
class Joint:
    """A vertex without an operator: the start of a flow, or several ends taken as one."""

    reads: tuple[Vertex, ...] = ()


Vertex = Node | Value | Joint  # a Value is an input of the graph


class Flow:
    """The data flow of the tower ``name``.

    ``belongs``: the tower of each value (see ``norms/structure.py``). The vertices that the tower's
    inputs reach are its members; ``start`` comes before all of them. ``foreign``: members of other
    towers that this one reads. ``output_names``: in the order of the graph's outputs.
    """

    def __init__(
        self,
        graph: Graph,
        sites: Sequence[Site],
        belongs: Mapping[Value, str],
        name: str,
        output_names: Sequence[str] = (),
    ) -> None:
        self.graph = graph
        self._output_names = output_names or [value.name for value in graph.outputs]
        self.name = name
        self.start = Joint()
        self.sites = {graph.value(s.output).producer: s for s in sites}
        self.foreign: set[Vertex] = set()
        self._belongs = belongs
        self._reads: dict[Vertex, list[Vertex]] = {self.start: []}
        self._readers: dict[Vertex, list[Vertex]] = {}
        self._order: dict[Vertex, float] = {self.start: -np.inf}
        for index, value in enumerate(graph.inputs, -len(graph.inputs)):
            if self._is_mine(value) and (name or _is_data(value)):
                self._add(value, [self.start], index)
        for index, node in enumerate(graph.nodes):
            if any(self._is_mine(value) for value in node.outputs):
                reads = self._data_reads(node)
                if reads:
                    self._add(node, reads, index)

    def __contains__(self, vertex: object) -> bool:
        return vertex in self._reads

    def reads(self, vertex: Vertex) -> list[Vertex]:
        """The distinct members whose data ``vertex`` reads, in the order of its inputs."""
        return list(vertex.reads) if isinstance(vertex, Joint) else self._reads[vertex]

    def readers(self, vertex: Vertex) -> list[Vertex]:
        """The members that read the data of ``vertex``."""
        return self._readers.get(vertex, [])

    def members(self) -> list[Node]:
        """The operators, in order."""
        return [v for v in self._reads if isinstance(v, Node) and v not in self.foreign]

    def sorted(self, vertices: Iterable[Vertex]) -> list[Vertex]:
        """In the order of execution; a joint of ends comes last."""
        return sorted(vertices, key=lambda v: self._order.get(v, np.inf))

    def ends(self) -> list[Vertex]:
        """The members that yield outputs of the graph or feed another tower, in order."""
        return [v for v in self._reads if self.outputs(v) or self._leaves(v)]

    def outputs(self, vertex: Vertex) -> list[str]:
        """The names of the graph outputs that ``vertex`` yields."""
        if not isinstance(vertex, Node) or vertex in self.foreign:
            return []
        named = zip(self._output_names, self.graph.outputs, strict=True)
        return [name for name, value in named if value in vertex.outputs]

    def between(self, entry: Vertex, exit: Vertex) -> list[Vertex]:
        """The vertices that ``exit`` depends on, no farther back than ``entry``; both included."""
        found = {entry, exit}
        stack = [exit]
        while stack:
            vertex = stack.pop()
            new = [] if vertex is entry else [r for r in self.reads(vertex) if r not in found]
            found.update(new)
            stack.extend(new)
        return self.sorted(found)

    def cuts(self, entry: Vertex, exit: Vertex) -> list[Vertex]:
        """The vertices on every path from ``entry`` to ``exit``, both included.

        In topological order those are the ones that no edge jumps over.
        """
        inside = self.between(entry, exit)
        position = {vertex: index for index, vertex in enumerate(inside)}
        change = [0] * (len(inside) + 1)
        for vertex in inside[1:]:
            for read in self.reads(vertex):
                if read in position:
                    change[position[read] + 1] += 1
                    change[position[vertex]] -= 1
        jumps = np.cumsum(change)
        return [vertex for vertex, over in zip(inside, jumps, strict=False) if not over]

    # -- building --------------------------------------------------------------------------------

    def _add(self, vertex: Vertex, reads: list[Vertex], order: float) -> None:
        self._reads[vertex] = reads
        self._order[vertex] = order
        for read in reads:
            self._readers.setdefault(read, []).append(vertex)

    def _is_mine(self, value: Value) -> bool:
        return self._belongs.get(value, "") == self.name and not value.is_constant

    def _data_reads(self, node: Node) -> list[Vertex]:
        site = self.sites.get(node)
        if site is not None:
            values = [self.graph.value(site.input)]
        elif node.operator.reads_sizes_only:
            values = []
        elif is_embedding(node):
            return self._inputs_behind(node.data_input(1))
        else:
            values = [v for v in node.dynamic_inputs() if _is_data(v)]
        found = [self._vertex(value) for value in values]
        return list(dict.fromkeys(v for v in found if v is not None))

    def _vertex(self, value: Value) -> Vertex | None:
        """The vertex that yields ``value``, or None where that is no member's data."""
        vertex: Vertex = value.producer or value
        if vertex in self._reads:
            return vertex
        if self.name == "both" and self._belongs.get(value):  # an end of another tower
            self.foreign.add(vertex)
            self._add(vertex, [self.start], -1)
            return vertex
        return None

    def _inputs_behind(self, index: Value) -> list[Vertex]:
        """The members among the graph inputs that token ids come from."""
        pending, seen = [index], set[Value]()
        while pending:
            value = pending.pop()
            if value not in seen:
                seen.add(value)
                pending.extend(value.producer.dynamic_inputs() if value.producer else [])
        return [v for v in self.graph.inputs if v in seen and v in self._reads]

    def _leaves(self, vertex: Vertex) -> bool:
        if not isinstance(vertex, Node) or self.name == "both":
            return False
        readers = [node for value in vertex.outputs for node in value.readers]
        return any(self._belongs.get(node.output) == "both" for node in readers)


def is_embedding(node: Node) -> bool:
    """Whether the operator looks tokens up in a constant table."""
    index = node.input(1)
    return (
        node.op == "Gather"
        and node.data_input().is_constant
        and index is not None
        and not index.is_constant
    )


def _is_data(value: Value) -> bool:
    """Floats and quantised floats; a value of unknown type counts."""
    return value.dtype is None or is_floating(value.dtype) or value.dtype in (np.int8, np.uint8)
