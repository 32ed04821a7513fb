"""What the exact passes over LayerNorms have to show, whatever the graph."""

from __future__ import annotations

from collections import Counter

import numpy as np

from normswap.graph.graph import Graph
from normswap.graph.linear import linear_writing
from normswap.model import Model
from normswap.norms import locate
from normswap.passes.base import Pass, PassResult
from tests.passes.fold_checks import EXACT, Feeds, fingerprint, same


def check_exact(model: Model, rewrite: Pass, feeds: Feeds, bound: float = EXACT) -> PassResult:
    """Runs the pass; the result is the same function, each norm is done or skipped with a reason,
    and the input is as it was."""
    before, outputs = fingerprint(model.graph), model.run(feeds, np.float64)
    result = rewrite(model)
    assert fingerprint(model.graph) == before, "the input has changed"
    same(outputs, result.model, feeds, bound)
    told = [site.name for site in [*result.done, *(site for site, _ in result.skipped)]]
    assert sorted(told) == sorted(s.name for s in locate(model.graph).sites), "not all are told of"
    assert all(reason for _, reason in result.skipped), "a reason is missing"
    assert result.modified == bool(result.done)
    assert (result.model is model) != result.modified
    return result


def vectors(graph: Graph) -> Counter[str]:
    """How many operators of each kind take a constant vector, other than as a Linear's bias."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.dynamic_inputs()) != 1:
            continue
        (constant,) = (v for v in node.inputs if v is not None and v.is_constant)
        is_vector = len([size for size in constant.shape or () if size != 1]) == 1
        found[node.op] += is_vector and linear_writing(graph, node.output) is None
    return found


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)
