"""Whether a candidate is the reference itself, operator by operator: a swap that did nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from normswap.graph.graph import Graph, Value
from normswap.lowering import kernels_of
from normswap.model import Model, Step
from normswap.parity.report import Finding


def found_unchanged(reference: Model, candidate: Model) -> list[Finding]:
    """A finding where the candidate's graph and weights are the reference's: fatal if its history
    tells of changes."""
    if not same_graph(reference.graph, candidate.graph):
        return []
    claims = [step for step in candidate.history[len(reference.history) :] if step.done]
    if not claims:
        message = "both models are the same, operator by operator and weight by weight"
        return [Finding("unchanged", message, fatal=False)]
    told = "; ".join(map(_told, claims))
    message = f"its history says {told}, but it is the reference, operator by operator"
    return [Finding("unchanged", message)]


def same_graph(ours: Graph, theirs: Graph) -> bool:
    """Whether both have the same operators, wired alike, and the same weights, bit for bit;
    whatever they are called."""
    if ours.kind != theirs.kind or len(ours.nodes) != len(theirs.nodes):
        return False
    if len(kernels_of(ours)) != len(kernels_of(theirs)):
        return False
    if any(a != b for a, b in zip(_wiring(ours), _wiring(theirs), strict=False)):
        return False
    pairs = zip(_constants(ours), _constants(theirs), strict=True)
    return all(_equal(ours.constant(a), theirs.constant(b)) for a, b in pairs)


def _told(step: Step) -> str:
    return f"'{step.name}' changed {step.done} {'norm' if step.done == 1 else 'norms'}"


def _wiring(graph: Graph) -> Iterator[tuple[Any, ...]]:
    """What each operator is and which of the values before it it reads; then the outputs."""
    numbers: dict[Value, int] = {value: index for index, value in enumerate(graph.inputs)}

    def number(value: Value | None) -> int | None:
        return None if value is None else numbers.setdefault(value, len(numbers))

    for node in graph.nodes:
        reads = tuple(number(value) for value in node.inputs)
        yield node.op, repr(sorted(node.attributes.items())), reads, len(node.outputs)
        for value in node.outputs:
            number(value)
    yield tuple(number(value) for value in graph.outputs)


def _constants(graph: Graph) -> list[Value]:
    """Those that operators read, each once, in the order in which they are first read."""
    read = (v for node in graph.nodes for v in node.inputs if v is not None)
    return [v for v in dict.fromkeys(read) if v.is_constant and v.producer is None]


def _equal(ours: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return np.ascontiguousarray(ours).tobytes() == np.ascontiguousarray(theirs).tobytes()
