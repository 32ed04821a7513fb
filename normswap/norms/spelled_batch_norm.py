"""Evaluation-mode BatchNorms spelled out: (x - mean) / sqrt(var + eps) * gamma + beta of constants.

Its root is over a constant, which ``decomposed.py`` does not look at. What follows is affine per
channel, so two evaluations give scale and shift; which constants are the statistics follows from
the root and from which of them explain the shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.norms.evaluation import WHOLE, RegionRunner, bounded
from normswap.norms.regions import Region
from normswap.norms.site import Site, site_name

_FAR = 1e6
_SAME = 1e-9


def spelled_batch_norms(graph: Graph) -> list[Site]:
    """The spelled-out BatchNorms of a graph; a chain that is not affine per channel is none."""
    sites: list[Site] = []
    covered: set[Node] = set()
    for root in graph.nodes:
        if not _is_root(graph, root) or root in covered:
            continue
        for reader in _dynamic_readers(root):
            if reader in covered:
                continue
            chain = _chain(graph, reader)
            site = None
            if chain and (longer := _with_scale(chain)):
                site = _site(graph, root, longer, explained=True)
                chain = longer if site is not None else chain
            if chain and site is None:
                site = _site(graph, root, chain, explained=False)
            if site is not None:
                sites.append(site)
                covered.update(chain)
    return sites


def _is_root(graph: Graph, node: Node) -> bool:
    """A root over a vector of constants; a logarithm may be half of one."""
    found = node.op in ("Sqrt", "Rsqrt", "Log") or (
        node.op == "Pow" and graph.scalar(node.input(1)) in (0.5, -0.5)
    )
    if not found or not node.output.is_constant or node.output.dtype is None:
        return False
    size = int(np.prod(node.output.shape or ()))
    return size > 1 and max(node.output.shape or (1,)) == size and is_floating(node.output.dtype)


def _dynamic_readers(root: Node) -> list[Node]:
    """The first nodes behind a constant that depend on an input."""
    found: dict[Node, None] = {}
    pending, seen = [root], set[Node]()
    while pending:
        for node in pending.pop().output.readers:
            if node in seen:
                continue
            seen.add(node)
            if node.output.is_constant:
                pending.append(node)
            else:
                found[node] = None
    return list(found)


def _chain(graph: Graph, reader: Node) -> list[Node]:
    """[Sub of the mean], products and quotients, [Add of the bias]; ``reader`` is one of them."""
    if reader.op not in ("Mul", "Div") or not _is_affine(reader):
        return []
    chain = [reader]
    while (before := chain[0].dynamic_inputs()[0].producer) is not None:
        if not _is_affine(before) or not (before.op in ("Mul", "Div") or _subtracts(before)):
            break
        chain.insert(0, before)
        if _subtracts(before):
            break
    while (behind := _onward(chain[-1])) is not None:
        chain.append(behind)
        if behind.op in ("Add", "Sub"):
            break
    return chain


def _onward(node: Node) -> Node | None:
    """The only reader that is affine again; others may read the value as it is."""
    affine = [reader for reader in node.output.readers if _is_affine(reader)]
    return affine[0] if len(affine) == 1 else None


def _subtracts(node: Node) -> bool:
    """A Sub, or an Add of something negated."""
    if node.op == "Sub":
        return True
    other = next((v for v in node.inputs if v is not None and v.is_constant), None)
    return (
        node.op == "Add"
        and other is not None
        and other.producer is not None
        and (other.producer.op == "Neg")
    )


def _with_scale(chain: list[Node]) -> list[Node]:
    """The chain with a product behind its Add, for (n + beta / gamma) * gamma."""
    behind = _onward(chain[-1])
    if chain[-1].op not in ("Add", "Sub") or behind is None or behind.op not in ("Mul", "Div"):
        return []
    return [*chain, behind]


def _is_affine(node: Node) -> bool:
    """A linear function of one value and constants, that keeps its shape."""
    dynamic = node.dynamic_inputs()
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(dynamic) != 1:
        return False
    if node.op == "Div" and node.input(0) is not dynamic[0]:
        return False
    return node.output.shape is not None and node.output.shape == dynamic[0].shape


@dataclass(frozen=True)
class _Statistics:
    variance: Array
    epsilon: float
    source: Value


def _site(graph: Graph, root: Node, chain: list[Node], explained: bool) -> Site | None:
    """The chain as a BatchNorm; ``explained``: only if its weight is among the constants."""
    entry, end = chain[0].dynamic_inputs()[0], chain[-1].output
    found = _scale_and_shift(graph, Region(entry, (end,), tuple(chain), ()))
    statistics = _statistics(graph, root)
    if found is None or found[0].size != statistics.variance.size:
        return None
    if np.any(statistics.variance + statistics.epsilon <= 0):
        return None
    scale, shift, axis = found
    weight = scale * np.sqrt(statistics.variance + statistics.epsilon)
    leaves = list(_leaves(graph, end, entry, statistics.source))
    mean, bias = _mean_and_bias(scale, shift, leaves)
    known = next((w for v in leaves for w in (v, -v) if _alike(w, weight)), None)
    if explained and known is None:
        return None
    weight = weight if known is None else known
    constants = [v for n in graph.ancestors([end], stop=[entry]) for v in n.inputs]
    return Site(
        name=site_name(chain, constants),
        kind="batch_norm",
        axes=(axis,),
        normalized_shape=mean.shape,
        epsilon=statistics.epsilon,
        weight=None if _alike(weight, np.ones_like(weight)) else weight,
        bias=None if not np.any(bias) else bias,
        mean=mean,
        variance=statistics.variance,
        input=entry.name,
        output=end.name,
        spelling="decomposed",
    )


def _scale_and_shift(graph: Graph, region: Region) -> tuple[Array, Array, int] | None:
    """y = scale * x + shift along one axis, [C] each; None if that is not what the region does."""
    shape = bounded(region.entry.shape or (), WHOLE)
    if not shape or shape != region.entry.shape:
        return None
    run = RegionRunner(graph, region)
    random = np.random.default_rng(0).standard_normal(shape)
    probes = np.stack([np.zeros(shape), np.full(shape, _FAR), random])
    (y,) = run(probes)
    if y is None or not np.all(np.isfinite(y)):
        return None
    shift, scale = y[0], (y[1] - y[0]) / _FAR
    axes = [a for a in range(len(shape)) if _varies(scale, a) or _varies(shift, a)]
    if len(axes) != 1 or axes[0] == 0 < len(shape) - 1:
        return None
    error = np.abs(y[2] - scale * random - shift)
    if np.any(error > _SAME * (np.abs(scale) + np.abs(shift)).max()):
        return None
    row = tuple(slice(None) if a == axes[0] else 0 for a in range(len(shape)))
    return scale[row], shift[row], axes[0]


def _varies(array: Array, axis: int) -> bool:
    return bool(np.any(np.abs(array - np.take(array, [0], axis)) > _SAME * np.abs(array).max()))


def _statistics(graph: Graph, root: Node) -> _Statistics:
    """The variance and the epsilon that are added under the root."""
    value = root.data_input()
    while (node := value.producer) is not None:
        if node.op == "Add":
            for index in (0, 1):
                part, epsilon = node.data_input(index), graph.scalar(node.input(1 - index))
                if epsilon is not None and graph.scalar(part) is None:
                    return _Statistics(_vector(graph, part), float(str(np.float32(epsilon))), part)
        inverts = node.op == "Div" and graph.scalar(node.input(0)) == 1
        if not inverts and node.op != "Reciprocal" and not node.operator.passes_through:
            break
        value = node.data_input(1 if inverts else 0)
    return _Statistics(_vector(graph, value), 0.0, value)


def _vector(graph: Graph, value: Value) -> Array:
    array = graph.constant(value)
    assert array is not None  # what a constant is computed from is one
    return array.astype(np.float64).reshape(-1)


def _leaves(graph: Graph, end: Value, entry: Value, variance: Value) -> Iterator[Array]:
    """The vectors of constants that the region reads, without the variance."""
    for node in graph.ancestors([end], stop=[entry]):
        for value in node.inputs:
            if value is None or value is variance or value.producer is not None:
                continue
            array = graph.constant(value)
            if array is not None and array.size > 1 and is_floating(array.dtype):
                yield array.astype(np.float64).reshape(-1)


def _mean_and_bias(scale: Array, shift: Array, leaves: list[Array]) -> tuple[Array, Array]:
    """The constants that explain ``shift = bias - scale * mean``; else a mean of zero."""
    zero = np.zeros_like(shift)
    known = [*(v for v in leaves if v.shape == shift.shape), zero]
    for mean in known:
        for bias in known:
            if _alike(bias - scale * mean, shift):
                return mean, bias
    return zero, shift


def _alike(found: Array, wanted: Array) -> bool:
    close = np.abs(found - wanted) <= 1e-7 * max(float(np.abs(wanted).max()), 1e-30)
    return found.shape == wanted.shape and bool(np.all(close))
