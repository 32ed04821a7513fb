"""Decomposed LayerNorms become one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normswap.graph.graph import Array, Graph, Value
from normswap.locate import locate
from normswap.locate.site import Site
from normswap.model import Model
from normswap.passes.base import Pass, PassResult
from normswap.passes.select import select_sites

_OP = "LayerNormalization"


@dataclass
class Fused(Pass):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * gamma + beta, spelled out, becomes LayerNormalization
    (ONNX) or ``aten.layer_norm`` (FX) with the constants that the proof recovered.

    Exact. Needs opset 17 in ONNX and raises an older one. What else reads an intermediate of the
    spelling keeps it. Skips norms that are one operator already, and other kinds.
    """

    target: ClassVar[str] = "fused"
    exact: ClassVar[bool] = True

    sites: str | None = None

    def __call__(self, model: Model) -> PassResult:
        before = locate(model.graph).sites
        chosen = select_sites(before, self.sites)
        todo = [s for s in chosen if s.kind == "layer_norm" and s.spelling == "decomposed"]
        skipped = [(s, _reason(s)) for s in chosen if s not in todo]
        if not todo:
            return PassResult(model, False, [], skipped)
        result = model.copy()
        graph = result.graph
        graph.require(_OP)
        for site in reversed(todo):  # a norm may read the output of the one before it
            _fuse(graph, site)
        graph.prune()
        return PassResult(result, True, todo, skipped)


def _reason(site: Site) -> str:
    return "it is one operator already" if site.kind == "layer_norm" else f"it is a {site.kind}"


def _fuse(graph: Graph, site: Site) -> None:
    x, old = graph.value(site.input), graph.value(site.output)
    spelling = graph.ancestors([old], stop=[x])
    own = [v for node in spelling for v in node.inputs if v is not None and v.is_constant]

    def constant(array: Array | None, name: str) -> Value | None:
        """The spelling's own parameter where it is the one, so that its name stays."""
        if array is None:
            return None
        for value in own:
            alike = value.shape == array.shape and value.dtype == x.dtype
            if alike and np.array_equal(graph.constant(value), array):  # type: ignore[arg-type]
                return value
        return graph.add_constant(array.astype(x.dtype), f"{site.name}.{name}")

    new = graph.insert(
        _OP,
        [x, constant(site.weight, "weight"), constant(site.bias, "bias")],
        {"axis": site.axes[0], "epsilon": site.epsilon},
        name=f"{site.name}.output",
        like=old.producer,
    )
    graph.replace_uses(old, new)
