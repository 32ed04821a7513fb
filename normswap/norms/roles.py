"""What a norm does in its model, decided from the structure of the graph around it.

A transformer's stream is ``x + f(norm(x))`` (pre-norm), ``norm(x + f(x))`` (post-norm) or
``x + norm(f(x))`` (post-norm on the branch): which residual connection a norm lies in, and where
in it, says what it does; whether an attention lies there too tells the two kinds of block apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normswap.graph.graph import Graph, Node, Value
from normswap.norms.site import Site
from normswap.norms.structure import Residual, is_attention, is_product, residuals

_AVERAGES = ("mean", "local mean")


def assign_roles(graph: Graph, sites: Sequence[Site]) -> list[Site]:
    """``sites``, all norms of ``graph``, each with its role (one of ``site.ROLES``)."""
    structure = _Structure(graph, sites)
    return [replace(site, role=structure.role(site)) for site in sites]


class _Structure:
    """The residual connections and norms of a graph, and what follows from them."""

    def __init__(self, graph: Graph, sites: Sequence[Site]) -> None:
        self.graph = graph
        self.residuals = residuals(graph)
        self.by_sum = {r.total: r for r in self.residuals}
        self.forks = {r.skip: r for r in self.residuals if r.projected}
        self.inputs = {graph.value(s.input) for s in sites}
        self.blocks = {r.total for r in self.residuals if r.is_block}
        self.streams = {r.skip for r in self.residuals}
        self.norms = {graph.value(s.output).origin: graph.value(s.input).origin for s in sites}
        self.behind_norms = graph.descendants({graph.value(s.output) for s in sites})
        self.behind_sums = graph.descendants(self.by_sum)
        self.around: dict[Value, list[Residual]] = {}
        outputs = {graph.value(site.output) for site in sites}
        for residual in (r for r in self.residuals if r.is_block):
            for value in residual.inside & outputs:
                self.around.setdefault(value, []).append(residual)

    def role(self, site: Site) -> str:
        x, y = self.graph.value(site.input), self.graph.value(site.output)
        if y in self.around:
            return self._role_inside(x, y)
        fork = None if _comes_from_product(x) else self._fork_behind(y)
        if fork is not None:
            return "pre_attention" if fork.attends else "pre_mlp"
        residual = self.by_sum.get(y) or self.by_sum.get(x.origin)
        if residual is not None and self._is_post_norm(residual, y):
            return "post_attention" if residual.attends else "post_mlp"
        products = self._products_to_stream(y)
        if products is not None:
            if x not in self.behind_norms:
                return "embedding"
            between = x in self.behind_sums and (products or _comes_from_product(x))
            return "downsample" if between else "other"
        return "final" if self._is_stream_end(x) and self._is_read_by_a_head(y) else "other"

    def _role_inside(self, x: Value, y: Value) -> str:
        """That of a norm in the branch of a residual connection."""
        around = sorted(self.around[y], key=lambda r: len(r.inside))
        closing = next((r for r in around if _is_part(x, r.skip)), None)
        if closing is not None:
            return "pre_attention" if closing.attends else "pre_mlp"
        residual = around[0]
        if _attends_directly(y, residual) and _comes_from_product(x):
            return "query_key"
        if _ends(residual, y):
            return "post_attention" if residual.attends else "post_mlp"
        inner = residual.projected and self._is_normalised(residual.skip)
        if _convolves(x, residual.skip) and not inner:
            return "pre_attention" if residual.attends else "pre_mlp"
        return "other"

    def _fork_behind(self, y: Value) -> Residual | None:
        """The residual connection whose branch and whose projected skip both start from ``y``, or
        from an activation of it."""
        pending, seen = [y], set[Value]()
        while pending:
            value = pending.pop(0)
            if value in seen:
                continue
            seen.add(value)
            if value.origin in self.forks:
                return self.forks[value.origin]
            for node in value.readers:
                if node.operator.passes_through or node.operator.activation or _shifts(node):
                    pending.extend(node.outputs)
        return None

    def _is_read_by_a_head(self, y: Value) -> bool:
        """Whether the model's outputs depend on ``y`` and no norm and no block does. One of a
        single token belongs to a head that pools them."""
        behind, pending = {y}, [y]
        while pending:
            for node in pending.pop().readers:
                reads = [] if node.operator.reads_sizes_only else node.outputs
                pending += (fresh := [v for v in reads if v not in behind])
                behind.update(fresh)
        parts = self.inputs | (self.blocks - {y})
        if any(_extent(v) > 1 for v in parts):
            parts = {v for v in parts if v.shape is None or _extent(v) > 1}
        return behind.isdisjoint(parts) and not behind.isdisjoint(self.graph.outputs)

    def _is_normalised(self, value: Value) -> bool:
        """Whether it is an activation of a norm."""
        value = value.origin
        while value.producer is not None and value.producer.operator.activation:
            value = value.producer.data_input().origin
        return value in self.norms

    def _is_post_norm(self, residual: Residual, y: Value) -> bool:
        """Whether ``y``, the norm of the sum, is the stream of a model whose branches have no norm
        at their start."""
        starts = any(
            output in residual.inside
            and (source is residual.skip or _convolves(source, residual.skip))
            for output, source in self.norms.items()
        )
        return not starts and (y.origin in self.streams or residual.skip in self.norms)

    def _products_to_stream(self, y: Value) -> int | None:
        """How many products, at most one, make ``y`` the stream of what follows; None if more."""
        pending, seen = [(y, 0)], set[tuple[Value, int]]()
        while pending:
            value, products = pending.pop(0)
            if (value, products) in seen:
                continue
            seen.add((value, products))
            if value.origin in self.streams:
                return products
            for node in value.readers:
                if is_product(node) and not products:
                    pending.append((node.output, 1))
                elif (
                    node.operator.passes_through
                    or _selects(node)
                    or _shifts(node)
                    or _masks(node, value)
                ):
                    pending.extend((out, products) for out in node.outputs)
        return None

    def _is_stream_end(self, x: Value) -> bool:
        """Whether ``x`` is the stream, a part of it or a mean, or another norm of that."""
        pending, seen = [x], set[Value]()
        while pending:
            value = pending.pop().origin
            node = value.producer
            if value in seen:
                continue
            seen.add(value)
            if value in self.by_sum or value in self.norms or value in self.streams:
                return True
            if node is not None and (_averages(node) or _selects(node) or _shifts(node)):
                pending.extend(node.dynamic_inputs())
        return not self.residuals and not _comes_from_product(x)


def _is_part(x: Value, whole: Value) -> bool:
    """Whether ``x`` is ``whole``, moved and scaled perhaps, or put together with other values."""
    pending, seen = [x], set[Value]()
    while pending:
        value = pending.pop().origin
        if value is whole:
            return True
        node = value.producer
        if value in seen or node is None:
            continue
        seen.add(value)
        if _selects(node) or _shifts(node):
            pending.extend(node.dynamic_inputs())
    return False


def _extent(value: Value) -> int:
    """How many axes behind the first one have more than one position."""
    return sum(size > 1 for size in (value.shape or ())[1:])


def _shifts(node: Node) -> bool:
    """A sum or product with a constant: a bias, a position embedding, a LayerScale."""
    return node.operator.commutes and len(node.dynamic_inputs()) == 1


def _masks(node: Node, value: Value) -> bool:
    """A product with a number for each token, which the graph computes."""
    others = [v for v in node.dynamic_inputs() if v is not value]
    numbers = len(others) == 1 and others[0].shape and others[0].shape[-1] == 1
    return node.op == "Mul" and bool(numbers) and node.output.shape == value.shape


def _selects(node: Node) -> bool:
    """Whether it takes a part of a value, or puts parts together."""
    return node.operator.move in ("split", "gather", "concat", "pad")


def _averages(node: Node) -> bool:
    return node.operator.pool in _AVERAGES


def _attends_directly(y: Value, residual: Residual) -> bool:
    """Whether an attention reads ``y`` without a product with weights in between."""
    pending, seen = [y], set[Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        for node in value.readers:
            if is_attention(node):
                return True
            if not is_product(node):
                pending.extend(v for v in node.outputs if v in residual.inside)
    return False


def _ends(residual: Residual, y: Value) -> bool:
    """Whether nothing but constants meets ``y`` on its way into the sum."""
    value = residual.branch
    while True:
        if value is y:
            return True
        node = value.producer
        if node is None or not (node.operator.passes_through or _shifts(node)):
            return False
        value = node.dynamic_inputs()[0]


def _convolves(x: Value, skip: Value) -> bool:
    """Whether ``x`` is a convolution of the stream: ConvNeXt's norm behind its first layer."""
    value = x.origin
    while value.producer is not None and (
        value.producer.operator.product == "convolution"
        or value.producer.operator.move == "pad"
        or _shifts(value.producer)
    ):
        value = value.producer.dynamic_inputs()[0].origin
        if value is skip:
            return True
    return False


def _comes_from_product(value: Value) -> bool:
    """Whether the value is a projection, heads split off or a bias added on the way."""
    while True:
        value = value.origin
        node = value.producer
        if node is None:
            return False
        if is_product(node) or is_attention(node):
            return True
        if node.operator.move in ("split", "gather") or _shifts(node):
            value = node.dynamic_inputs()[0]
        else:
            return False
