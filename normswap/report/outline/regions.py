"""From the flow of a tower to its items: it is cut where all data passes, and each part is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from normswap.graph.graph import Node
from normswap.report.outline.flow import Flow, Joint, Vertex
from normswap.report.outline.grouping import grouped
from normswap.report.outline.items import Fork, Item, Side, Step, value_of
from normswap.report.outline.operators import (
    activation_name,
    heads,
    key,
    moves,
    short_name,
    step_of,
)

_PROJECTIONS = 4  # of an attention: of queries, keys, values and results
_LENGTHS = ("L2 norm", "sum of squares", "sum")  # the statistics that measure a vector


class Regions:
    """The items of one flow.

    ``anchors``: for every vertex that was read, the value of the item that shows it. Shared by the
    towers of a model, so that one can link to another.
    """

    def __init__(self, flow: Flow, anchors: dict[Vertex, str]) -> None:
        self._flow = flow
        self._anchors = anchors

    def chain(self, entry: Vertex, exit: Vertex, residual: bool = False) -> list[Item]:
        """The items behind ``entry`` up to ``exit``, which depends on it alone.

        ``residual``: in a branch that is added to its input.
        """
        items: list[Item] = []
        anchor = self._anchors.get(entry, "")
        for before, after in pairwise(self._flow.cuts(entry, exit)):
            found = self._region(before, after, residual)
            anchor = value_of(found[-1]) if found else anchor
            for vertex in self._flow.between(before, after):
                self._anchors.setdefault(vertex, anchor)
            items += found
        return grouped(items, residual)

    def side(self, end: Vertex) -> Side:
        """The items that lead to a further end of the flow, from where it branches off."""
        outputs = tuple(self._flow.outputs(end))
        if end in self._anchors:
            return Side(self._anchors[end], (), outputs)
        new = [v for v in self._flow.between(self._flow.start, end) if v not in self._anchors]
        entries = self._flow.sorted(
            {r for v in new for r in self._flow.reads(v) if r in self._anchors}
        )
        after = self._anchors[entries[-1]] if entries else ""
        items = self.chain(entries[0], end) if len(entries) == 1 else self._flat(new)
        return Side(after, tuple(items), outputs)

    # -- between two cuts ------------------------------------------------------------------------

    def _region(self, entry: Vertex, exit: Vertex, residual: bool) -> list[Item]:
        """The items between two neighbouring cuts."""
        if self._flow.reads(exit) == [entry]:
            return self._flat([exit])
        inner = [v for v in self._flow.between(entry, exit) if v is not entry]
        if all(self._is_elementwise(v) for v in inner):
            return self._elementwise(inner)
        summands = self._summands(exit)
        adds = self._is_sum(exit) or isinstance(exit, Joint)
        if adds and any(self._is_moved(entry, v) for v in summands):
            return self._residual(entry, exit, summands)
        fork = self._fork(entry, exit, summands, residual) if adds else None
        if fork is not None:
            return fork
        cores = [v for v in inner if isinstance(v, Node) and self._attends(v)]
        if len(cores) == 1 and not self._holds_mlp(inner):
            return [self._attention(inner, cores[0])]
        if not adds:
            fork = self._fork(entry, exit, summands, residual)
        return fork if fork is not None else self._along_the_longest(entry, exit, inner)

    def _residual(self, entry: Vertex, exit: Vertex, summands: list[Vertex]) -> list[Item]:
        others = [v for v in summands if not self._is_moved(entry, v)]
        if not others:
            return []
        end = others[0] if len(others) == 1 else Joint(tuple(others))
        branch = self.chain(entry, end, residual=True)
        only = branch[0] if len(branch) == 1 else None
        if isinstance(end, Joint) and isinstance(only, Fork) and only.join == "add":
            return [Fork("add", ((), *only.branches), key(exit))]
        return [Fork("add", ((), tuple(branch)), key(exit))]

    def _attention(self, inner: list[Vertex], core: Node) -> Step:
        kept = ("linear", "norm")
        found = [step for v in inner if (step := step_of(self._flow, v)) and step.kind in kept]
        own = Step("attention", core.scope, heads(core), value=core.output.name)
        return Step("attention", core.scope, own.detail, None, (*found, own), key(inner[-1]))

    def _elementwise(self, inner: list[Vertex]) -> list[Item]:
        """An activation, a division by the length and the like, spelled out in operators."""
        nodes = [v for v in inner if isinstance(v, Node)]
        last = nodes[-1]
        reductions = [n.operator.statistic for n in nodes if n.op.startswith("Reduce")]
        scopes = {n.scope for n in nodes}
        name = last.scope if len(scopes) == 1 else ""
        if reductions:
            divides = last.op == "Div" and len(reductions) == 1 and reductions[0] in _LENGTHS
            detail = "to unit length" if divides else f"{len(nodes)} operators"
            return [Step("normalise" if divides else "operator", name, detail, value=key(last))]
        known = _spelled_activation(nodes)
        return [Step("activation", name, known, value=key(last))] if known else []

    def _fork(
        self, entry: Vertex, exit: Vertex, ends: list[Vertex], residual: bool
    ) -> list[Item] | None:
        """Branches that share nothing but ``entry``; None where they share more."""
        insides = [set(self._flow.between(entry, end)) - {entry} for end in ends]
        if any(first & second for first, second in combinations(insides, 2)):
            return None
        join = _join(exit)
        parts = [tuple(self.chain(entry, end, residual and join != "multiply")) for end in ends]
        if join == "concat" and all(_takes_tokens(part) for part in parts):
            return self._flat([exit])  # tokens among which others may be put
        if not any(parts) and not (isinstance(exit, Node) and exit.operator.product):
            return []  # the same data, moved in several ways and put together again
        return [Fork(join, tuple(parts), key(exit))]

    def _along_the_longest(self, entry: Vertex, exit: Vertex, inner: list[Vertex]) -> list[Item]:
        """Tangled branches: the longest one, then the rest in order."""
        ends = self._flow.reads(exit)
        longest = max(ends, key=lambda end: len(self._flow.between(entry, end)))
        items = self.chain(entry, longest)
        covered = set(self._flow.between(entry, longest))
        return items + self._flat([v for v in inner if v not in covered])

    def _flat(self, vertices: list[Vertex]) -> list[Item]:
        found: list[Item] = []
        anchor = ""
        for vertex in vertices:
            step = step_of(self._flow, vertex)
            if step is not None and step.kind == "link":
                step = replace(step, value=self._anchors.get(vertex, ""))
            if step is not None:
                found.append(step)
                anchor = step.value
            if anchor:
                self._anchors.setdefault(vertex, anchor)
        return found

    def _summands(self, vertex: Vertex) -> list[Vertex]:
        """The summands of a sum, those of inner sums in their place."""
        if not self._is_sum(vertex):
            return self._flow.reads(vertex)
        found: list[Vertex] = []
        for read in self._flow.reads(vertex):
            nested = self._is_sum(read) and self._flow.readers(read) == [vertex]
            found += self._summands(read) if nested else [read]
        return list(dict.fromkeys(found))

    def _is_sum(self, vertex: Vertex) -> bool:
        return (
            isinstance(vertex, Node)
            and vertex.op == "Add"
            and vertex not in self._flow.sites
            and len(self._flow.reads(vertex)) > 1
        )

    def _is_moved(self, entry: Vertex, vertex: Vertex) -> bool:
        """Whether ``vertex`` is ``entry`` or only moves its data."""
        while vertex is not entry and moves(self._flow, vertex):
            vertex = self._flow.reads(vertex)[0]
        return vertex is entry

    def _holds_mlp(self, inner: list[Vertex]) -> bool:
        """Whether there are more layers than an attention has."""
        kinds = [step.kind for v in inner if (step := step_of(self._flow, v)) is not None]
        return kinds.count("linear") > _PROJECTIONS and "activation" in kinds

    def _attends(self, node: Node) -> bool:
        """Whether it is a softmax or a fused attention. Whether a softmax weighs a sum, its
        surroundings say."""
        return bool(node.operator.attention) and node not in self._flow.sites

    def _is_elementwise(self, vertex: Vertex) -> bool:
        return (
            isinstance(vertex, Node)
            and vertex not in self._flow.sites
            and vertex not in self._flow.foreign
            and not (vertex.operator.product or vertex.operator.attention)
            and vertex.op != "Concat"
            and (not vertex.operator.pool or vertex.op.startswith("Reduce"))
        )


def _takes_tokens(items: Sequence[Item]) -> bool:
    return all(isinstance(item, Step) and "token" in item.detail for item in items)


def _join(vertex: Vertex) -> str:
    if not isinstance(vertex, Node):
        return "add"
    return vertex.operator.join or short_name(vertex.op)


def _spelled_activation(nodes: list[Node]) -> str:
    """The name of an activation that several operators make up; '' for none that is known."""
    ops = [node.op for node in nodes]
    if "Erf" in ops:
        return "GELU"
    if "Tanh" in ops:
        return "Mish" if "Softplus" in ops else "GELU (tanh)"
    if "Sigmoid" in ops:
        return "quick GELU" if ops.count("Mul") > 1 else "SiLU"
    named = [name for op in ops if (name := activation_name(op))]
    return named[0] if named else ""
