"""Evaluation in half precision, node by node, as a device without float32 accumulation computes.

What is modelled. Every floating value that a node yields is rounded to the format, once; so are the
graph's inputs, weights and constants, epsilons too (``rounding.as_half``). Too large is infinite,
too small is subnormal or 0. Inside an operator these are rounded as well:

* the product of a layer, before its bias is added;
* the sum of a mean, before it is divided;
* of a sum of squares, an L2 norm, a variance and a deviation: what is centred, each square, the
  sum, and what that is divided by or the root is taken of;
* of a softmax over the last axis: the difference from the maximum, the exponentials, their sum;
* of an attention in one operator: queries and keys, each times the root of the scale, logits and
  masked logits, the softmax as above.

What is not: a sum is rounded whole, not term by term, so that its order does not matter. Inside of
norms that are one operator all is exact, as their standard has the statistics in float32; any other
operator (a GELU, an einsum, a pool over windows) is exact inside too, and so are the bodies of
loops and branches. A model that has values of the format in it is taken at its word: what it
computes in float32 is not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from normswap.graph.graph import Array, Graph, Node, Runner, Value, is_floating
from normswap.graph.rounding import STANDS_FOR_INFINITY, as_half, rounded

_KEPT_LIMIT = 1_000_000_000  # bytes of rounded constants that are kept from run to run
_NO_MORE = -1e3  # of which the exponential is 0
Rounder = Callable[[Array], Array]


@dataclass
class Overflow:
    """A place at which finite values gave one that is not: ``value`` is infinite or NaN there.

    ``node``: what computes it, None for an input or a constant. ``magnitude``: the largest finite
    one that was too large, 0.0 where it is the operator that gives infinity or NaN.
    """

    value: Value
    node: Node | None
    magnitude: float


class _Rounding:
    """Rounds, and takes note of what was too large."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.begin()

    def begin(self) -> None:
        """Forgets what was too large so far."""
        self.most, self.all_below_zero = 0.0, True

    def note(self, beyond: Array) -> None:
        """Takes note of numbers that were too large."""
        if beyond.size:
            self.most = max(self.most, float(np.abs(beyond).max()))
            self.all_below_zero &= bool((beyond < 0).all())

    def __call__(self, array: Array) -> Array:
        found = rounded(array, self.dtype)
        if not np.isfinite(found).all():
            self.note(array[np.isinf(found) & np.isfinite(array)])
        return found

    def constant(self, array: Array) -> Array:
        return self(np.asarray(as_half(array, self.dtype), np.float64))


class _Watching(_Rounding):
    """Rounds nothing."""

    def __call__(self, array: Array) -> Array:
        most = float(ml_dtypes.finfo(self.dtype).max)
        self.note(array[np.isfinite(array) & (np.abs(array) > most)])
        return array

    def constant(self, array: Array) -> Array:
        rounded_once = np.asarray(as_half(array, self.dtype), np.float64)
        stands = np.isfinite(rounded_once) & (np.abs(array) >= STANDS_FOR_INFINITY)
        return self(np.where(stands, rounded_once, np.asarray(array, np.float64)))


class Simulation:
    """A ``Runner`` of a slice of ``graph`` in the half precision ``dtype`` (see above).

    Arrays come and go in the values' own dtypes. ``watch``: round nothing, but find what rounding
    would make infinite. Raises ValueError if an output depends on a graph input that is not given.

    Attributes:
        overflows: the places found in all runs so far, in the order of execution, each once.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        dtype: Any,
        watch: bool = False,
    ) -> None:
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._dtype = np.dtype(dtype)
        self._rounding = (_Watching if watch else _Rounding)(self._dtype)
        self._graph = graph
        self._mixed = any(value.dtype == self._dtype for value in graph.values())
        nodes = graph.ancestors(outputs, stop=inputs)
        wanted = {v for node in nodes for v in node.inputs if v is not None} | set(outputs)
        given = set(inputs)
        for value in graph.inputs:
            if value in wanted and value not in given:
                raise ValueError(f"the input '{value.name}' is needed and was not given")
        self._steps = [_Step(graph, node, wanted) for node in nodes]
        self._last = {v: i for i, step in enumerate(self._steps) for v in step.reads}
        self._constants: dict[Value, Array] = {}
        self._infinite: set[Value] = set()  # constants that are not finite
        self._room = _KEPT_LIMIT
        self._found: dict[tuple[int, Value], Overflow] = {}

    @property
    def overflows(self) -> list[Overflow]:
        return [self._found[key] for key in sorted(self._found, key=lambda key: key[0])]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        known: dict[Value, Array] = {}
        tainted = set(self._infinite)  # not finite in this run
        for value, array in zip(self._inputs, arrays, strict=True):
            known[value] = self._taken(value, np.asarray(array), tainted)

        def load(value: Value) -> Array:
            return known[value] if value in known else self._constant(value, tainted)

        for index, step in enumerate(self._steps):
            narrow = self._narrows(step.node.output)
            self._rounding.begin()
            reads = [load(value) for value in step.reads]
            self._rounding.begin()
            rounder = self._rounding if narrow else _exact
            for value, result in zip(step.writes, step.run(reads, rounder), strict=True):
                known[value] = self._written(index, step, value, result, tainted)
            for value in step.reads:
                if self._last[value] == index and value not in self._outputs:
                    known.pop(value, None)
        return [_as_declared(load(value), value) for value in self._outputs]

    def _narrows(self, value: Value) -> bool:
        """Whether a value is rounded."""
        if self._mixed and value.is_constant and value.dtype == np.float64 and value.uses:
            value = value.uses[0][0].output  # a number in a torch call has no dtype of its own
        if self._mixed:
            return value.dtype == self._dtype
        return value.dtype is None or is_floating(value.dtype)

    def _taken(self, value: Value, array: Array, tainted: set[Value]) -> Array:
        if not is_floating(array.dtype):
            return array
        self._rounding.begin()
        array = np.asarray(array, np.float64)
        array = self._rounding(array) if self._narrows(value) else array
        self._judge(-1, None, value, array, tainted, True)
        return array

    def _constant(self, value: Value, tainted: set[Value]) -> Array:
        array = self._constants.get(value)
        if array is None:
            held = self._graph.constant(value)
            assert held is not None  # else it would be an input or the result of a step
            array = np.asarray(held)
            if is_floating(array.dtype):
                was_finite = bool(np.isfinite(np.asarray(array, np.float64)).all())
                self._rounding.begin()
                if self._narrows(value):
                    array = self._rounding.constant(array)
                array = np.asarray(array, np.float64)
                self._judge(-1, None, value, array, tainted, was_finite)
                self._infinite |= tainted & {value}
                half = array.astype(self._dtype)
                if np.array_equal(half, array, equal_nan=True):
                    array = half  # a quarter of the memory
            if array.nbytes <= self._room:
                self._constants[value] = array
                self._room -= array.nbytes
        return np.asarray(array, np.float64) if is_floating(array.dtype) else array

    def _written(
        self, index: int, step: _Step, value: Value, result: Array, tainted: set[Value]
    ) -> Array:
        if not is_floating(result.dtype):
            return result
        array = np.asarray(result, np.float64)
        if self._narrows(value):
            array = self._rounding(array)
        self._judge(index, step.node, value, array, tainted, tainted.isdisjoint(step.reads))
        return array

    def _judge(
        self,
        index: int,
        node: Node | None,
        value: Value,
        array: Array,
        tainted: set[Value],
        from_finite: bool,
    ) -> None:
        most = self._rounding.most
        finite = bool(np.isfinite(array).all())
        if not finite:
            tainted.add(value)
        weighed = all(reader.operator.attention == "softmax" for reader in value.readers)
        if most and self._rounding.all_below_zero and value.readers and weighed:
            return  # a masked logit, of no weight either way
        if most or (from_finite and not finite):
            known = self._found.setdefault((index, value), Overflow(value, node, most))
            known.magnitude = max(known.magnitude, most)


class _Step:
    """One node: what it reads and writes, and how it is computed."""

    def __init__(self, graph: Graph, node: Node, wanted: set[Value]) -> None:
        self.node = node
        self.reads = [v for v in dict.fromkeys(node.inputs) if v is not None and _is_fed(v, graph)]
        self.writes = [value for value in node.outputs if value in wanted]
        self._plain: Runner | None = None
        self._graph = graph
        self._inner = _INNER.get(_kind_of(node))

    def plain(self, arrays: Sequence[Array]) -> list[Array]:
        """What the node yields, exact inside."""
        if self._plain is None:
            self._plain = self._graph.slice(self.reads, self.writes, np.float64)
        return [np.asarray(array) for array in self._plain(arrays)]

    def run(self, arrays: Sequence[Array], rounder: Rounder) -> list[Array]:
        with np.errstate(all="ignore"):
            found = None
            if self._inner is not None and rounder is not _exact:
                by_value = dict(zip(self.reads, arrays, strict=True))
                reads = [None if v is None else by_value.get(v) for v in self.node.inputs]
                found = self._inner(self, reads, rounder)
            if found is None:
                return self.plain(arrays)
            places = [self.node.outputs.index(value) for value in self.writes]
            return [found[place] for place in places]


def _exact(array: Array) -> Array:
    return array


def _is_fed(value: Value, graph: Graph) -> bool:
    """Whether a node is given what it reads; whole numbers that are constants it has."""
    if value.is_constant:
        return value.dtype is not None and (is_floating(value.dtype) or value.dtype == bool)
    return value.producer is not None or value in graph.inputs


def _as_declared(array: Array, value: Value) -> Array:
    declared = value.dtype
    if declared is None or not is_floating(array.dtype) or not is_floating(declared):
        return array
    with np.errstate(over="ignore"):
        return array.astype(declared)


# -- what is rounded inside of operators; None where a node is computed plainly -------------------

Reads = Sequence[Array | None]
Found = Sequence[Array] | None


def _kind_of(node: Node) -> str:
    known = node.operator
    if known.normalises:
        return ""
    if known.product and known.has_bias:
        return "biased"
    if known.attention:
        return known.attention
    return known.statistic if "axes" in node.attributes or not known.parameters else ""


def _biased(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    bias = reads[2] if len(reads) > 2 else None
    weight = reads[1]
    if bias is None or weight is None or not is_floating(bias.dtype):
        return None
    value = step.node.inputs[2]
    feeds = [np.zeros_like(bias) if v is value else a for v, a in _pairs(step, reads)]
    (product,) = step.plain(feeds)
    if step.node.operator.product == "convolution":
        bias = bias.reshape(-1, *[1] * (weight.ndim - 2))
    return [rounder(product) + step.node.attributes.get("beta", 1.0) * bias]


def _pairs(step: _Step, reads: Reads) -> list[tuple[Value, Array]]:
    by_value = dict(zip(step.node.inputs, reads, strict=True))
    return [(v, array) for v in step.reads if (array := by_value[v]) is not None]


def _axes(step: _Step, x: Array) -> tuple[tuple[int, ...], bool]:
    """The axes of a reduction, and whether they are kept."""
    attributes = step.node.attributes
    axes = attributes.get("axes", tuple(range(2, x.ndim)))  # a global pool has none
    return tuple(axes), bool(attributes.get("keepdims", 1))


def _mean(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    x = reads[0]
    if x is None or "kernel_shape" in step.node.attributes or "pads" in step.node.attributes:
        return None  # a pool over windows
    if step.node.attributes.get("noop_with_empty_axes"):
        return None
    axes, keep = _axes(step, x)
    return [rounder(x.sum(axes, keepdims=keep)) / _count(x, axes)]


def _count(x: Array, axes: Sequence[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _sum_of_squares(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    x = reads[0]
    if x is None:
        return None
    axes, keep = _axes(step, x)
    return [rounder(np.square(x)).sum(axes, keepdims=keep)]


def _l2_norm(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    if "axes" not in step.node.attributes:
        return None
    squares = _sum_of_squares(step, reads, rounder)
    return None if squares is None else [np.sqrt(rounder(squares[0]))]


def _variance(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    x, correction = reads[0], step.node.attributes.get("correction")
    if x is None or correction is None:
        return None
    axes, keep = _axes(step, x)
    mean = rounder(rounder(x.sum(axes, keepdims=True)) / _count(x, axes))
    squares = rounder(np.square(rounder(x - mean)))
    total = rounder(squares.sum(axes, keepdims=True)) / max(_count(x, axes) - correction, 0)
    if step.node.operator.root:
        total = np.sqrt(rounder(total))
    found = [total, mean]
    return found if keep else [array.squeeze(axes) for array in found]


def _softmax(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    x, axis = reads[0], step.node.attributes.get("axis")
    if x is None or not x.size or axis not in (-1, x.ndim - 1):
        return None
    return [_softmaxed(x, rounder)]


def _softmaxed(x: Array, rounder: Rounder) -> Array:
    below = x - x.max(-1, keepdims=True)
    below = np.where(below < _NO_MORE, -np.inf, below)  # harmless, and not to be told of
    powers = rounder(np.exp(rounder(below)))
    found: Array = powers / rounder(powers.sum(-1, keepdims=True))
    return found


def _attention(step: _Step, reads: Reads, rounder: Rounder) -> Found:
    attributes, known = step.node.attributes, [*reads, *[None] * 4][:4]
    query, key, value, mask = known
    if "is_causal" not in attributes or any(read is not None for read in reads[4:]):
        return None
    if query is None or key is None or value is None or query.ndim != 4 or key.ndim != 4:
        return None
    if query.shape[1] != key.shape[1] or attributes.get("softcap") or len(step.writes) > 1:
        return None
    root = math.sqrt(attributes.get("scale") or 1 / math.sqrt(query.shape[-1]))
    keys = rounder(key * root).swapaxes(-1, -2)
    logits = rounder(rounder(query * root) @ keys)
    if attributes["is_causal"]:
        seen = np.tri(*logits.shape[-2:])
        logits = np.where(seen > 0, logits, -np.inf)
    if mask is not None:
        given = mask.dtype == bool
        logits = np.where(mask, logits, -np.inf) if given else rounder(logits + mask)
    return [rounder(_softmaxed(logits, rounder)) @ value]


_INNER: dict[str, Callable[[_Step, Reads, Rounder], Found]] = {
    "biased": _biased,
    "mean": _mean,
    "sum of squares": _sum_of_squares,
    "L2 norm": _l2_norm,
    "variance": _variance,
    "deviation": _variance,
    "softmax": _softmax,
    "fused": _attention,
}
