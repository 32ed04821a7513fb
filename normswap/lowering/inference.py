"""How a graph runs in inference: with the kernels that lowering has chosen for its norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normswap.graph.graph import Graph, Node, Runner

if TYPE_CHECKING:
    from normswap.graph.fx.graph import FxGraph


def kernels_of(graph: Graph) -> dict[Node, str]:
    """The kernel of every norm that runs as one in inference: none outside of torch graphs."""
    if graph.kind != "fx":
        return {}
    from normswap.lowering.torch_kernels import running_kernels

    return running_kernels(torch_graph(graph))


def inference_runner(graph: Graph) -> Runner:
    """A function from arrays for the graph's inputs to those of its outputs, in its own dtypes and
    with its kernels."""
    if not kernels_of(graph):
        return graph.whole()
    from normswap.graph.fx.runner import module_runner
    from normswap.lowering.torch_kernels import inference_module

    return module_runner(inference_module(torch_graph(graph)))


def torch_graph(graph: Graph) -> FxGraph:
    """The graph, which is a torch graph."""
    from normswap.graph.fx.graph import FxGraph

    assert isinstance(graph, FxGraph)
    return graph
