"""Whether a captured module is a function of its inputs alone."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

from normswap.graph.fx.meta import call_arguments
from normswap.graph.fx.module_tree import get_path


def random_drops(module: fx.GraphModule) -> list[fx.Node]:
    """Dropouts that drop, as a capture in training mode leaves them."""
    return [node for node in module.graph.nodes if _drops(call_arguments(node))]


def written_state(module: fx.GraphModule) -> list[str]:
    """The paths of the weights and buffers that the graph, or a region nested in it, writes to."""
    written = (node for node in _written(module) if node.op == "get_attr")
    return list(dict.fromkeys(str(node.target) for node in written))


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
