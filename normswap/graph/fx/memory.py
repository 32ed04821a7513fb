"""The memory of an FX graph: which values share it, when nobody reads it any more, and what the
graph writes to. Also whether a captured module is a function of its inputs alone."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import fx

from normswap.graph.fx.meta import call_arguments
from normswap.graph.fx.module_tree import get_path

_aten = torch.ops.aten

# Operators whose result is new memory, densely filled, whatever their arguments.
FRESH = frozenset(
    {
        _aten.linear.default,
        _aten.addmm.default,
        _aten.mm.default,
        _aten.bmm.default,
        _aten.matmul.default,
        _aten.conv1d.default,
        _aten.conv2d.default,
        _aten.conv3d.default,
        _aten.convolution.default,
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.layer_norm.default,
        _aten.rms_norm.default,
        _aten.cat.default,
        _aten.stack.default,
        _aten.clone.default,
        _aten.gelu.default,
        _aten.relu.default,
        _aten.silu.default,
        _aten.sigmoid.default,
        _aten.tanh.default,
        _aten.softmax.int,
        _aten.embedding.default,
        _aten.index_select.default,
        _aten.index.Tensor,
        _aten.gather.default,
        _aten.mean.dim,
        _aten.scaled_dot_product_attention.default,
    }
)

# Operators whose result covers the memory of their argument, each element once.
_WHOLE = frozenset(
    {
        _aten.dropout.default,
        _aten.alias.default,
        _aten.detach.default,
        _aten.to.dtype,
        _aten.contiguous.default,
        _aten.view.default,
        _aten.reshape.default,
        _aten._unsafe_view.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.dim,
        _aten.unsqueeze.default,
        _aten.permute.default,
        _aten.transpose.int,
    }
)


class Storages:
    """Classes of the nodes of ``graph`` that may share memory.

    An operator that is not known to return new memory is taken to return any of its arguments'.
    ``before``: what shares memory by the operators before that node.
    """

    def __init__(self, graph: fx.Graph, before: fx.Node | None = None) -> None:
        nodes = list(graph.nodes)
        self._order = {node: index for index, node in enumerate(nodes)}
        self._parent = {node: node for node in nodes}
        self._members = {node: [node] for node in nodes}
        for node in nodes[: None if before is None else self._order[before]]:
            if node.op == "output" or node.target in FRESH or not _has_memory(node):
                continue
            for argument in filter(_has_memory, node.all_input_nodes):
                self.share(node, argument)

    def share(self, one: fx.Node, other: fx.Node) -> None:
        """Notes that the two share memory."""
        a, b = self._root(one), self._root(other)
        if a is not b:
            self._parent[b] = a
            self._members[a] += self._members.pop(b)

    def are_apart(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether the two surely share no memory."""
        return self._root(one) is not self._root(other)

    def is_dead_after(self, value: fx.Node, last: fx.Node) -> bool:
        """Whether the memory of ``value`` is the graph's own and dense, and nothing behind ``last``
        reads it, the graph's caller included: what stands at ``last`` may write to it."""
        members = self._members[self._root(value)]
        return _is_dense(value) and all(
            self._order[user] <= self._order[last] for member in members for user in member.users
        )

    def read_later(self, value: fx.Node, write: fx.Node) -> Iterable[fx.Node]:
        """Other nodes that stand before ``write``, may share the memory of ``value`` and are read
        behind it."""
        at = self._order[write]
        for member in self._members[self._root(value)]:
            early = member is not value and self._order[member] < at
            if early and any(self._order[user] > at for user in member.users):
                yield member

    def _root(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node


def hidden_writes(graph: fx.Graph, besides: Collection[Any] = ()) -> list[fx.Node]:
    """Calls of operators, ``besides`` some, that write to memory which is read elsewhere than from
    their result: what they do does not show in who reads whom."""
    storages, order = Storages(graph), {node: index for index, node in enumerate(graph.nodes)}
    writes = []
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or node.target in besides:
            continue
        places = zip(schema.arguments, node.args, strict=False)
        written = [v for a, v in places if a.is_write and isinstance(v, fx.Node)]
        after = (u for v in written for u in v.users if order[u] > order[node])
        if any(after) or any(m for v in written for m in storages.read_later(v, node)):
            writes.append(node)
    return writes


def random_drops(module: fx.GraphModule) -> list[fx.Node]:
    """Dropouts that drop, as a capture in training mode leaves them."""
    return [node for node in module.graph.nodes if _drops(call_arguments(node))]


def written_state(module: fx.GraphModule) -> list[str]:
    """The paths of the weights and buffers that the graph, or a region nested in it, writes to."""
    written = (node for node in _written(module) if node.op == "get_attr")
    return list(dict.fromkeys(str(node.target) for node in written))


def _has_memory(node: fx.Node) -> bool:
    """Whether it gives tensors: sizes are numbers, checks and operators in place give nothing."""
    schema = getattr(node.target, "_schema", None)
    nothing = schema is not None and not schema.returns
    number = isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat)
    return not nothing and not number


def _is_dense(value: fx.Node) -> bool:
    """Whether ``value`` is new memory, or all of such memory seen in another shape."""
    while value.op == "call_function" and value.target in _WHOLE:
        value = value.all_input_nodes[0]
    return value.op == "call_function" and value.target in FRESH


def _drops(given: dict[str, Any]) -> bool:
    """By the arguments of dropout, and of attention with one inside."""
    return bool(given.get("dropout_p") or (given.get("p") and given.get("train") is True))


def _written(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of the module's graph whose memory it writes to, views traced back."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            given = call_arguments(node)
            places = [given.get(a.name) for a in schema.arguments if a.is_write]
            yield from (_origin(place) for place in places if isinstance(place, fx.Node))
        handed: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), handed.append)
        for region in _regions(module, handed):
            inputs = region.graph.find_nodes(op="placeholder")
            operands = dict(zip(inputs, handed[len(handed) - len(inputs) :], strict=True))
            yield from (_origin(operands[place]) for place in _written(region) if place in operands)


def _regions(module: fx.GraphModule, nodes: list[fx.Node]) -> list[fx.GraphModule]:
    """What a higher-order operator calls: it is handed the regions, then their inputs."""
    held = [get_path(module, str(node.target)) for node in nodes if node.op == "get_attr"]
    return [region for region in held if isinstance(region, fx.GraphModule)]


def _origin(node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` gives, in part or as a view."""
    while True:
        source = node.args[0] if node.target is operator.getitem else _aliased(node)
        if not isinstance(source, fx.Node):
            return node
        node = source


def _aliased(node: fx.Node) -> Any:
    """The argument that the result of a call is a view of; None for new memory."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not any(result.alias_info for result in schema.returns):
        return None
    given = call_arguments(node)
    return next((given[a.name] for a in schema.arguments if a.alias_info), None)
