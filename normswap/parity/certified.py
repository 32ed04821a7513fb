"""Certificates of models: that two are the same function, or that a pass has not changed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from normswap.field.certificate import Certificate, certify
from normswap.field.difference import Pair
from normswap.field.duals import Carried, carried_by, carrying, running_over
from normswap.field.evaluation import Side
from normswap.field.values import Field
from normswap.graph.graph import Array, Graph
from normswap.model import Model
from normswap.norms import locate
from normswap.parity.pairing import matched_inputs, matched_positions, shared_inputs
from normswap.parity.probes import draw_feeds
from normswap.parity.site_pairs import Side as Paired
from normswap.parity.site_pairs import counterparts, layers, pair_sites

_ROWS = 2  # of a dynamic batch: samples may be mixed up


def certified(reference: Model, candidate: Model, key: bytes | None = None) -> Certificate:
    """Whether two models are the same function in real arithmetic (docs/concepts/certificate.md).

    ``key``: 32 bytes that all that is random is drawn from; new ones by default. Raises
    NormswapError for models whose inputs or outputs do not match.
    """
    shared = replace(reference, inputs=shared_inputs(reference, candidate))
    other = _side(reference, candidate)
    with reference.at_fault(), candidate.at_fault():
        own = _side(reference, reference)
        return certify(own, lambda over: other, _feeds(shared), key, _pairs(reference, own))


def certified_pass(
    original: Model, result: Model, rewrite: Callable[[Model], Model], key: bytes | None = None
) -> Certificate:
    """Whether what a pass has made of ``original`` is the same function, but for the rounding of
    the weights that it computed.

    ``rewrite`` runs the pass again, over a field. It has to give ``result`` once more: the same
    operators on the same numbers.
    """
    shared = replace(original, inputs=shared_inputs(original, result))
    mine = _side(original, original)
    with original.at_fault():
        location = original.location

        def candidate(over: Field) -> Side:
            copy = original.copy()
            sites = tuple(carried_by(site, over) for site in location.sites)
            carried = carrying(copy.graph, over)
            with running_over(over):
                again = rewrite(copy.located(replace(location, sites=sites)))
            carried = again.graph.carried if isinstance(again.graph.carried, Carried) else carried
            again.graph.carried = None
            refusal = _difference(result.graph, again.graph)
            return replace(_side(original, again), constants=carried.constants, refusal=refusal)

        return certify(mine, candidate, _feeds(shared), key, _pairs(original, mine))


def _side(reference: Model, model: Model) -> Side:
    names = matched_inputs(reference, model)
    values = {
        spec.name: value for spec, value in zip(model.inputs, model.graph.inputs, strict=True)
    }
    outputs = [model.graph.outputs[place] for place in matched_positions(reference, model)]
    return Side(model.graph, [values[names[spec.name]] for spec in reference.inputs], outputs)


def _pairs(reference: Model, own: Side) -> Callable[[Side], Sequence[Pair]]:
    """The norms and the layers of two models that are in each other's place."""

    def pairs(other: Side) -> list[Pair]:
        sides = [
            Paired(reference.graph, reference.location.sites, own.outputs),
            Paired(other.graph, locate(other.graph).sites, other.outputs),
        ]
        matched = counterparts(*(layers(side.graph) for side in sides))
        found = [Pair(f"the layer '{a.label}'", a.output, b.output) for a, b in matched.items()]
        norms = [pair for pair in pair_sites(*sides)[0] if pair.at == "output"]
        return found + [Pair(f"the norm '{p.site.name}'", p.ours, p.theirs) for p in norms]

    return pairs


def _feeds(shared: Model) -> Callable[[int], Mapping[str, Array]]:
    values = [value.name for value in shared.graph.inputs]

    def draw(seed: int) -> dict[str, Array]:
        feeds = draw_feeds(shared, "normal", _ROWS, [seed])
        return {name: feeds[spec.name] for name, spec in zip(values, shared.inputs, strict=True)}

    return draw


def _difference(one: Graph, other: Graph) -> str:
    """Where two graphs are not the same operators on the same numbers; '' if they are."""
    if len(one.nodes) != len(other.nodes):
        return "the pass does something else over a field"
    for mine, theirs in zip(one.nodes, other.nodes, strict=True):
        if mine.op != theirs.op or len(mine.inputs) != len(theirs.inputs):
            return f"over a field the pass writes {theirs.op} in place of {mine.op}"
        for a, b in zip(mine.inputs, theirs.inputs, strict=True):
            if a is not None and b is not None and a.is_constant and a.producer is None:
                x, y = one.constant(a), other.constant(b)
                if x is not None and (
                    y is None or not np.array_equal(x, np.asarray(y), equal_nan=True)
                ):
                    return f"over a field the pass writes other numbers to '{a.name}'"
    return ""
