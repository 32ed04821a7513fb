"""Evaluation-mode BatchNorms spelled out: (x - mean) / sqrt(var + eps) * gamma + beta of constants.

Its root is over a constant, which ``decomposed.py`` does not look at. What follows is affine per
channel, so two evaluations give scale and shift; which constants are the statistics follows from
the root and from which of them explain the shift. Every constant may be a vector over the channels
or one number for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.norms.constants import known_constant, known_scalar
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
        statistics = None if root in covered else _statistics(graph, root)
        if statistics is None:
            continue
        for reader in _dynamic_readers(root):
            if reader in covered:
                continue
            if (norm := _norm(graph, reader, statistics)) is not None:
                sites.append(_site(graph, *norm, statistics.epsilon))
                covered.update(norm[0])
    return sites


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


# -- the chain of affine nodes -------------------------------------------------------------------


def _norm(
    graph: Graph, reader: Node, statistics: _Statistics
) -> tuple[list[Node], _AffineMap] | None:
    """The nodes of the norm that ``reader`` belongs to, in order, and what they compute.

    [Sub of the mean], products and quotients, one of which is ``reader``, and then what of the
    norm is still missing: an Add of the rest of the mean (of x k - m k), the product with gamma, an
    Add of beta. What comes after a norm that has its gamma or beta is not part of it.
    """
    if reader.operator.arithmetic != "product" or not _is_affine(reader):
        return None
    chain = [reader]
    while (before := chain[0].dynamic_inputs()[0].producer) is not None:
        if not _is_affine(before) or not (
            before.operator.arithmetic == "product" or _subtracts(before)
        ):
            break
        chain.insert(0, before)
        if _subtracts(before):
            break
    while (behind := _onward(chain[-1])) is not None and behind.operator.arithmetic == "product":
        chain.append(behind)
    products = [node for node in chain if node.operator.arithmetic == "product"]
    affine = _affine_map(graph, chain, statistics)
    if affine is None:
        return None
    centred = len(products) < len(chain)
    scaled = len(products) > 1 or _reads_a_vector(graph, reader, statistics.root)
    scaled = scaled or not _alike(np.abs(affine.weight), np.ones_like(affine.weight))
    shifted = False
    while (behind := _onward(chain[-1])) is not None:
        if shifted if behind.operator.arithmetic == "sum" else scaled:
            break
        longer = _affine_map(graph, [*chain, behind], statistics)
        if longer is None:
            break
        chain.append(behind)
        affine = longer
        if behind.operator.arithmetic == "sum":
            shifted = centred or bool(np.any(affine.bias))
            centred = True
        else:
            scaled = True
    return None if affine.axis is None else (chain, affine)


def _onward(node: Node) -> Node | None:
    """The only reader that is affine again; others may read the value as it is."""
    affine = [reader for reader in node.output.readers if _is_affine(reader)]
    return affine[0] if len(affine) == 1 else None


def _is_affine(node: Node) -> bool:
    """A linear function of one value and constants, that keeps its shape."""
    dynamic = node.dynamic_inputs()
    if not node.operator.combines_two or len(dynamic) != 1:
        return False
    if node.op == "Div" and node.input(0) is not dynamic[0]:
        return False
    return node.output.shape is not None and node.output.shape == dynamic[0].shape


def _constant_input(node: Node) -> Value | None:
    return next((v for v in node.inputs if v is not None and v.is_constant), None)


def _subtracts(node: Node) -> bool:
    """A Sub, or an Add of something negated."""
    other = _constant_input(node)
    negated = other is not None and other.producer is not None and other.producer.op == "Neg"
    return node.op == "Sub" or (node.op == "Add" and negated)


def _reads_a_vector(graph: Graph, product: Node, root: Node) -> bool:
    """Whether what is multiplied is more than one over the root: g / s, with a vector g."""
    return any(array.size > 1 for array in _leaves(graph, [product], root))


def _leaves(graph: Graph, nodes: Sequence[Node], root: Node) -> Iterator[Array]:
    """The stored constants that ``nodes`` read, by way of others or not; none behind the root."""
    operands = [v for node in nodes if (v := _constant_input(node)) is not None]
    behind = graph.ancestors(operands, stop=[root.output])
    for value in dict.fromkeys([*operands, *(v for node in behind for v in node.inputs)]):
        if value is None or value.producer is not None:
            continue
        array = known_constant(graph, value)
        if array is not None and (is_floating(array.dtype) or array.size == 1):
            yield array.astype(np.float64).reshape(-1)


# -- what it computes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Statistics:
    """What is under the root: a variance, one per channel or one for all, and an epsilon."""

    root: Node
    variance: Array
    epsilon: float


@dataclass(frozen=True)
class _AffineMap:
    """``y = (x - mean) / sqrt(variance + epsilon) * weight + bias`` along ``axis``, [C] each.

    [1] and no axis where all the constants are numbers.
    """

    axis: int | None
    mean: Array
    variance: Array
    weight: Array
    bias: Array


def _statistics(graph: Graph, root: Node) -> _Statistics | None:
    """The variance and the epsilon that are added under ``root``; None if it is no root of them.

    Of one number alone the root is any number's: only an epsilon beside it tells of a variance.
    """
    is_root = root.operator.root in ("square", "logarithm") or (
        root.op == "Pow" and known_scalar(graph, root.input(1)) in (0.5, -0.5)
    )
    dtype, shape = root.output.dtype, root.output.shape or ()
    if not is_root or not root.output.is_constant or dtype is None or not is_floating(dtype):
        return None
    if math.prod(shape) != max(shape, default=1):
        return None
    value, epsilon = root.data_input(), 0.0
    while (node := value.producer) is not None:
        if node.op == "Add":
            numbers = {
                i: n for i in (0, 1) if (n := known_scalar(graph, node.input(i))) is not None
            }
            if numbers:
                at = min(numbers, key=numbers.__getitem__)
                value, epsilon = node.data_input(1 - at), float(str(np.float32(numbers[at])))
            break
        inverts = node.op == "Div" and known_scalar(graph, node.input(0)) == 1
        if not inverts and node.op != "Reciprocal" and not node.operator.passes_through:
            break
        value = node.data_input(1 if inverts else 0)
    if epsilon <= 0 and math.prod(shape) == 1:
        return None
    array = known_constant(graph, value)
    if array is None:
        return None
    variance = array.astype(np.float64).reshape(-1)
    if np.any(variance + epsilon <= 0):
        return None
    return _Statistics(root, variance, epsilon)


def _affine_map(graph: Graph, chain: Sequence[Node], statistics: _Statistics) -> _AffineMap | None:
    """What ``chain`` computes; None if that is not affine per channel."""
    entry, end = chain[0].dynamic_inputs()[0], chain[-1].output
    found = _scale_and_shift(graph, Region(entry, (end,), tuple(chain), ()), _axes(chain))
    if found is None or statistics.variance.size not in (1, found[0].size):
        return None
    scale, shift, axis = found
    variance = np.broadcast_to(statistics.variance, scale.shape)
    leaves = [
        np.broadcast_to(array, scale.shape)
        for array in _leaves(graph, chain, statistics.root)
        if array.size in (1, scale.size)
    ]
    mean, bias = _mean_and_bias(scale, shift, leaves)
    weight = scale * np.sqrt(variance + statistics.epsilon)
    weight = next((w for v in leaves for w in (v, -v) if _alike(w, weight)), weight)
    return _AffineMap(axis, mean, variance, weight, bias)


def _axes(chain: Sequence[Node]) -> set[int]:
    """The axes of its input along which the constants of ``chain`` extend."""
    rank = len(chain[-1].output.shape or ())
    shapes = [v.shape or () for node in chain if (v := _constant_input(node)) is not None]
    return {rank - len(s) + i for s in shapes for i, size in enumerate(s) if size > 1}


def _scale_and_shift(
    graph: Graph, region: Region, axes: set[int]
) -> tuple[Array, Array, int | None] | None:
    """y = scale * x + shift along one axis, [C] each; None if that is not what the region does.

    The axis is the one along which they vary; where they do not, the only one of ``axes``, and
    without any there is none and C is 1.
    """
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
    axes = {a for a in range(len(shape)) if _varies(scale, a) or _varies(shift, a)} or axes
    if len(axes) > 1 or (0 in axes and len(shape) > 1):
        return None
    error = np.abs(y[2] - scale * random - shift)
    if np.any(error > _SAME * (np.abs(scale) + np.abs(shift)).max()):
        return None
    axis = next(iter(axes), None)
    row = tuple(slice(None) if a == axis else slice(1) for a in range(len(shape)))
    return scale[row].reshape(-1), shift[row].reshape(-1), axis


def _varies(array: Array, axis: int) -> bool:
    return bool(np.any(np.abs(array - np.take(array, [0], axis)) > _SAME * np.abs(array).max()))


def _mean_and_bias(scale: Array, shift: Array, known: Sequence[Array]) -> tuple[Array, Array]:
    """Which of the ``known`` constants explain ``shift = bias - scale * mean``; else a mean of
    zero."""
    zero = np.zeros_like(shift)
    for mean in (*known, zero):
        for bias in (*known, zero):
            if _alike(bias - scale * mean, shift):
                return mean, bias
    return zero, shift


def _alike(found: Array, wanted: Array) -> bool:
    close = np.abs(found - wanted) <= 1e-7 * max(float(np.abs(wanted).max()), 1e-30)
    return found.shape == wanted.shape and bool(np.all(close))


def _site(graph: Graph, chain: Sequence[Node], affine: _AffineMap, epsilon: float) -> Site:
    entry, end = chain[0].dynamic_inputs()[0], chain[-1].output
    constants = [v for n in graph.ancestors([end], stop=[entry]) for v in n.inputs]
    return Site(
        name=site_name(chain, constants),
        kind="batch_norm",
        axes=() if affine.axis is None else (affine.axis,),
        normalized_shape=affine.mean.shape,
        epsilon=epsilon,
        weight=None if np.all(np.abs(affine.weight - 1) <= 1e-7) else affine.weight,
        bias=affine.bias if np.any(affine.bias) else None,
        mean=affine.mean,
        variance=affine.variance,
        input=entry.name,
        output=end.name,
        spelling="decomposed",
    )
