"""Norms that are spelled out become one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from normswap.errors import NormswapError
from normswap.fit.batch_norm import BatchNormConstants
from normswap.graph.arrays import is_floating
from normswap.graph.graph import Array, Graph, Value
from normswap.locate import locate
from normswap.locate.site import Site
from normswap.model import Model
from normswap.passes.base import Pass, PassResult
from normswap.passes.insert import insert_batch_norm, insert_cast, insert_transpose
from normswap.passes.select import select_sites

_OPERATORS = {
    "layer_norm": "LayerNormalization",
    "rms_norm": "RMSNormalization",
    "batch_norm": "BatchNormalization",
}


@dataclass
class Fused(Pass):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * gamma + beta, spelled out, becomes LayerNormalization
    (ONNX) or ``aten.layer_norm`` (FX) with the constants that the proof recovered; an RMSNorm or
    an evaluation-mode BatchNorm becomes its own operator.

    Exact. A norm over other axes than the last ones gets transposes around it, one whose constants
    half precision cannot hold casts. ONNX's LayerNormalization needs opset 17, RMSNormalization
    23: an older file is raised to it. What else reads an intermediate of the spelling keeps it.
    Skips norms that are one operator already, and instance and group norms.
    """

    target: ClassVar[str] = "fused"
    exact: ClassVar[bool] = True

    sites: str | None = None

    def __call__(self, model: Model) -> PassResult:
        chosen = select_sites(locate(model.graph).sites, self.sites)
        todo = [s for s in chosen if s.kind in _OPERATORS and s.spelling == "decomposed"]
        skipped = [(s, _reason(s)) for s in chosen if s not in todo]
        if not todo:
            return PassResult(model, False, [], skipped)
        result = model.copy()
        todo, more = _writable(result.graph, todo)
        skipped += more
        if not todo:
            return PassResult(model, False, [], skipped)
        for site in reversed(todo):  # a norm may read the output of the one before it
            _fuse(result.graph, site)
        result.graph.prune()
        return PassResult(result, True, todo, skipped)


def _reason(site: Site) -> str:
    if site.spelling == "op":
        return "it is one operator already"
    return f"it is an {site.kind}" if site.kind == "instance_norm" else f"it is a {site.kind}"


def _writable(graph: Graph, sites: Sequence[Site]) -> tuple[list[Site], list[tuple[Site, str]]]:
    """The sites whose operator the graph can hold; it is raised to a newer opset where it must."""
    refused: dict[str, str] = {}
    for kind in sorted({site.kind for site in sites}):
        try:
            graph.require(_OPERATORS[kind])
        except NormswapError as error:
            refused[kind] = str(error)
    kept = [site for site in sites if site.kind not in refused]
    return kept, [(site, refused[site.kind]) for site in sites if site.kind in refused]


def _fuse(graph: Graph, site: Site) -> None:
    x, old = graph.value(site.input), graph.value(site.output)
    like, name = old.producer, f"{site.name}.output"
    dtype = _working_dtype(x, old, site)
    moved = insert_cast(graph, x, dtype, f"{site.name}.cast", like)
    if site.kind == "batch_norm":
        moved, _ = insert_batch_norm(
            graph, moved, site.axes[0], _batch_norm_constants(site), name, like
        )
    else:
        rank = len(x.shape or ())
        perm = (*(a for a in range(rank) if a not in site.axes), *site.axes)
        first = rank - len(site.axes)
        moved = insert_transpose(graph, moved, perm, f"{site.name}.axes_last", like)
        weight, bias = (
            _constant(graph, site, array, part, dtype)
            for array, part in ((site.weight, "weight"), (site.bias, "bias"))
        )
        attributes = {"axis": first, "epsilon": site.epsilon}
        inputs = [moved, weight, bias] if site.kind == "layer_norm" else [moved, weight]
        moved = graph.insert(_OPERATORS[site.kind], inputs, attributes, name=name, like=like)
        if site.kind == "rms_norm" and bias is not None:
            moved = graph.insert("Add", [moved, bias], name=f"{site.name}.shifted", like=like)
        back = tuple(perm.index(axis) for axis in range(rank))
        moved = insert_transpose(graph, moved, back, f"{site.name}.axes_back", like)
    moved = insert_cast(graph, moved, old.dtype, f"{site.name}.cast_back", like)
    graph.replace_uses(old, moved)


def _working_dtype(x: Value, y: Value, site: Site) -> np.dtype[Any]:
    """That of input and output, if they agree and it holds the constants; else at least float32."""
    given = [v.dtype for v in (x, y) if v.dtype is not None]
    constants = [a for a in (site.weight, site.bias, site.mean, site.variance) if a is not None]
    same = len(set(given)) == 1
    if same and (given[0].itemsize > 2 or all(_holds(given[0], a) for a in constants)):
        return given[0]
    return np.result_type(np.float32, *(d for d in given if d.itemsize > 2))


def _holds(dtype: np.dtype[Any], array: Array) -> bool:
    return is_floating(dtype) and bool(np.all(array.astype(dtype).astype(np.float64) == array))


def _constant(
    graph: Graph, site: Site, array: Array | None, part: str, dtype: np.dtype[Any]
) -> Value | None:
    """The spelling's own parameter where it is the one, so that its name stays; else a new one."""
    if array is None:
        return None
    spelling = graph.ancestors([graph.value(site.output)], stop=[graph.value(site.input)])
    for value in (v for node in spelling for v in node.inputs if v is not None):
        if value.is_constant and value.shape == array.shape and value.dtype == dtype:
            own = graph.constant(value)
            if own is not None and np.array_equal(own, array):
                return value
    return graph.add_constant(array.astype(dtype), f"{site.name}.{part}")


def _batch_norm_constants(site: Site) -> BatchNormConstants:
    assert site.mean is not None  # a batch_norm site has statistics
    assert site.variance is not None
    return BatchNormConstants(
        weight=np.ones_like(site.mean) if site.weight is None else site.weight,
        bias=np.zeros_like(site.mean) if site.bias is None else site.bias,
        mean=site.mean,
        variance=site.variance,
        epsilon=site.epsilon,
    )
