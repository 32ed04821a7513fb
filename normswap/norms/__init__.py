"""Which norms a graph holds, where, and what each one does."""

from __future__ import annotations

from dataclasses import replace

from normswap.graph.graph import Graph
from normswap.norms.decomposed import decomposed_norms
from normswap.norms.names import unique_names
from normswap.norms.operators import operator_norms
from normswap.norms.roles import assign_roles
from normswap.norms.site import Location, Rejection, Site
from normswap.norms.spelled_batch_norm import spelled_batch_norms
from normswap.norms.towers import towers

__all__ = ["Location", "Rejection", "Site", "locate"]


def locate(graph: Graph) -> Location:
    """Every norm of the graph in the order of execution, with its role and tower.

    Norms that are one operator are read off; decomposed ones are proven numerically (see
    ``locate/proof.py``). Candidates that are not the norm they look like come with the reason.
    """
    decomposed = decomposed_norms(graph)
    found, unread = operator_norms(graph, decomposed.covered)
    order = {node.output.name: index for index, node in enumerate(graph.nodes)}
    sites = [*found, *decomposed.sites, *spelled_batch_norms(graph)]
    sites.sort(key=lambda site: order[_producer_name(graph, site)])
    sites = [replace(s, name=n) for s, n in zip(sites, unique_names(sites), strict=True)]
    belongs = towers(graph)
    sites = [replace(s, tower=belongs.get(graph.value(s.input), "")) for s in sites]
    return Location(tuple(assign_roles(graph, sites)), (*decomposed.rejected, *unread))


def _producer_name(graph: Graph, site: Site) -> str:
    producer = graph.value(site.output).producer
    assert producer is not None  # a norm's output is computed
    return producer.output.name
