"""Which norms a graph holds, where, and what each one does.

A norm is found by what it computes, not by how it is spelled. The search goes in these steps, a
file each: ``operator_norms`` reads norms that are one operator, ``decomposed`` and
``spelled_batch_norm`` find those that are made of several. ``regions`` says where to look,
``proof`` decides, on values that ``evaluation`` computes and with the formulas of ``formula``.
``structure`` and ``roles`` tell what each norm is for, ``quantised`` why some are none.
"""

from __future__ import annotations

from dataclasses import replace

from normswap.graph.graph import Graph
from normswap.norms.decomposed import decomposed_norms
from normswap.norms.operator_norms import operator_norms
from normswap.norms.quantised import with_quantised_told
from normswap.norms.roles import assign_roles
from normswap.norms.site import Location, Rejection, Site, unique_names
from normswap.norms.spelled_batch_norm import spelled_batch_norms
from normswap.norms.structure import towers

__all__ = ["Location", "Rejection", "Site", "locate"]


def locate(graph: Graph) -> Location:
    """Every norm of the graph, with its name, role and tower.

    Norms that are one operator are read off; those made of several are proven by evaluation in
    float64, and their axes, epsilon, weight and bias recovered from the values. Both lists of the
    result are in the order of execution; a candidate that is not the norm it looks like is among
    ``rejected`` with the reason.

    Examples:
        >>> location = locate(ns.load("vit.onnx").graph)
        >>> [(site.name, site.role) for site in location.sites if site.kind == "layer_norm"]
        [('blocks.0.norm1', 'pre_attention'), ('blocks.0.norm2', 'pre_mlp'), ('norm', 'final')]
    """
    decomposed = decomposed_norms(graph)
    single, unread = operator_norms(graph, decomposed.covered)
    order = {node.output.name: index for index, node in enumerate(graph.nodes)}
    sites = [*single, *decomposed.sites, *spelled_batch_norms(graph)]
    sites.sort(key=lambda site: order[_producer_name(graph, site)])
    sites = [replace(s, name=n) for s, n in zip(sites, unique_names(sites), strict=True)]
    tower_of = towers(graph)
    sites = [replace(s, tower=tower_of.get(graph.value(s.input), "")) for s in sites]
    rejected = with_quantised_told(graph, decomposed.rejected)
    return Location(tuple(assign_roles(graph, sites)), (*rejected, *unread))


def _producer_name(graph: Graph, site: Site) -> str:
    producer = graph.value(site.output).producer
    assert producer is not None  # a norm's output is computed
    return producer.output.name
