"""A torch graph cut down to some of its values, and the weights that these depend on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, nn


def tapped(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """A module that shares the parameters of ``module`` and returns the values of the nodes
    ``names``, in a tuple. Its arguments are the inputs that they depend on, by name.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _needed(module, names)
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    by_name = {node.name: node for node in copies}
    graph.output(tuple(copies[by_name[name]] for name in names))
    graph.lint()
    return fx.GraphModule(module, graph)


def arguments(module: fx.GraphModule) -> list[str]:
    """The names of a tapped module's arguments."""
    return [str(node.target) for node in module.graph.find_nodes(op="placeholder")]


def parameters_of(module: fx.GraphModule, names: Sequence[str]) -> set[str]:
    """The paths of the parameters, buffers and modules that the nodes ``names`` depend on."""
    needed = _needed(module, names)
    return {str(node.target) for node in needed if node.op in ("get_attr", "call_module")}


def _needed(module: fx.GraphModule, names: Sequence[str]) -> set[fx.Node]:
    wanted = set(names)
    queue = [node for node in module.graph.nodes if node.name in wanted]
    seen = set(queue)
    while queue:
        for node in queue.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                queue.append(node)
    return seen


_ROUNDING = 1e-11  # of the largest gradient; in float64 rounding is some 1e-16 of it


def without_effect(module: nn.Module, loss: Tensor) -> list[str]:
    """The names of the parameters of ``module``, in float64, whose gradient of ``loss`` is zero but
    for rounding. Parameters without a gradient are not among them."""
    loss.backward()
    sizes = {
        name: float(parameter.grad.abs().max())
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.numel()
    }
    largest = max(sizes.values(), default=0.0)
    return [name for name, size in sizes.items() if size <= _ROUNDING * largest]
