"""How large the values of a model become on real data: every one, a window of the graph at a time.

A device computes the padding of a text as well, and 0 times NaN is NaN: no position is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Runner, Value, is_floating
from normswap.io.data import Data
from normswap.model import Model, Progress
from normswap.parity.batches import batches_of, has_dynamic_batch

_ROWS = 8  # of a batch, where it is dynamic
_ELEMENTS = 1 << 24  # of the values of a window, but for a single operator's
_HALF = 2  # bytes
_PLACEHOLDER = -1e6  # what is added up under a softmax stands for -infinity below that


@dataclass(frozen=True)
class Magnitude:
    """Of a value on all the data: the ``largest`` finite magnitude (of a mean that of its sum
    before the division), and the ``smallest`` that is not 0; both 0 where there is none."""

    largest: float = 0.0
    smallest: float = 0.0

    @classmethod
    def of(cls, array: Array) -> Magnitude:
        size = np.abs(array).astype(np.float64, copy=False).reshape(-1)
        size = size[np.isfinite(size) & (size > 0)]
        return cls(float(size.max()), float(size.min())) if size.size else cls()

    def merged(self, other: Magnitude) -> Magnitude:
        if not self.largest or not other.largest:
            return self if self.largest else other
        smallest = min(self.smallest, other.smallest)
        return Magnitude(max(self.largest, other.largest), smallest)


@dataclass(frozen=True)
class Measured:
    """The magnitudes of a graph's floating-point ``values``, and of the ``logits`` inside fused
    attentions, by the attention's output: softmax(scale q k^T) of its queries and keys."""

    values: Mapping[Value, Magnitude]
    logits: Mapping[Value, Magnitude]
    samples: int


def magnitudes(model: Model, data: Data, progress: Progress | None = None) -> Measured:
    """Runs ``model`` on ``data`` in its own precision; one in half precision in float64, so that
    what would overflow is seen.

    Raises NormswapError for data that does not fill a batch.
    """
    graph = model.graph
    batches, _ = batches_of(model, data)
    if has_dynamic_batch(model):
        batches = [part for feeds in batches for part in _parts(feeds)]
    rows = max((len(a) for a in batches[0].values() if a.ndim), default=1)
    given = max((len(a) for a in model.examples.values() if a.ndim), default=1)
    windows = list(_windows(graph, max(rows / max(given, 1), 1)))
    placeholders = _under_softmax(graph)
    values: dict[Value, Magnitude] = {}
    logits: dict[Value, Magnitude] = {}
    for done, feeds in enumerate(batches):
        if progress:
            progress(done, len(batches), "measuring")
        known = {v: feeds[spec.name] for v, spec in zip(graph.inputs, model.inputs, strict=True)}
        for value, array in known.items():
            _add(values, value, array)
        for window in windows:
            found = window.run(known)
            for value, array in found.items():
                counted = array
                if value in placeholders:
                    counted = array[array > _PLACEHOLDER]
                _add(values, value, counted, _summed(value))
            for node in window.attentions:
                inside = _logits(node, {**known, **found})
                if inside is not None:
                    logits[node.output] = logits.get(node.output, Magnitude()).merged(inside)
            known = {v: a for v, a in {**known, **found}.items() if v in window.needed_later}
    if progress:
        progress(len(batches), len(batches), "done")
    return Measured(values, logits, sum(len(next(iter(f.values()))) for f in batches))


def _parts(feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    count = len(next(iter(feeds.values())))
    for start in range(0, count, _ROWS):
        yield {name: array[start : start + _ROWS] for name, array in feeds.items()}


def _add(values: dict[Value, Magnitude], value: Value, array: Array, summed: float = 1.0) -> None:
    if isinstance(array, np.ndarray) and is_floating(array.dtype):
        found = Magnitude.of(array)
        found = Magnitude(found.largest * summed, found.smallest)
        values[value] = values.get(value, Magnitude()).merged(found)


def _summed(value: Value) -> float:
    """How many times as large as a mean the sum is that it is divided out of; 1 for all else."""
    node = value.producer
    if node is None or node.operator.statistic != "mean" or node.data_input().shape is None:
        return 1.0
    return math.prod(node.data_input().shape or ()) / max(math.prod(value.shape or ()), 1)


# -- windows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """Some nodes in a row: ``outputs`` are all that they compute, from ``inputs``.
    ``needed_later``: what later windows read."""

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    attentions: Sequence[Node]
    needed_later: frozenset[Value]
    runner: Runner

    def run(self, known: Mapping[Value, Array]) -> dict[Value, Array]:
        arrays = self.runner([known[value] for value in self.inputs])
        return dict(zip(self.outputs, arrays, strict=True))


def _windows(graph: Graph, growth: float) -> Iterator[_Window]:
    """``growth``: how many times as large values are as at the example inputs."""
    alive = set(graph.ancestors(graph.outputs))
    nodes = [n for n in graph.nodes if n in alive and n.dynamic_inputs()]
    half = any(v.dtype is not None and _is_half(v) for n in nodes for v in n.outputs)
    ours = {v for n in nodes for v in n.outputs}  # others come from constants, and come anew
    reads = {n: [v for v in n.dynamic_inputs() if v in ours] for n in nodes}
    own_inputs = set(graph.inputs)
    start = 0
    while start < len(nodes):
        end, size = start, 0.0
        while end < len(nodes) and (end == start or size < _ELEMENTS):
            size += growth * sum(math.prod(v.shape or ()) for v in nodes[end].outputs)
            end += 1
        now = nodes[start:end]
        made = [v for n in now for v in n.outputs if v.uses or v in graph.outputs]
        inside = set(made)
        later = {v for n in nodes[end:] for v in reads[n]} | own_inputs
        wanted = [v for n in now for v in reads[n] if v not in inside]
        inputs = list(dict.fromkeys([*graph.inputs, *wanted]))
        attentions = [n for n in now if n.operator.attention == "fused"]
        runner = graph.slice(inputs, made, np.float64 if half else None)
        yield _Window(inputs, made, attentions, frozenset(later), runner)
        start = end


def _is_half(value: Value) -> bool:
    assert value.dtype is not None
    return is_floating(value.dtype) and value.dtype.itemsize <= _HALF


def _under_softmax(graph: Graph) -> frozenset[Value]:
    """What is added up, chosen or moved to become the input of a softmax, or the mask of a fused
    attention: a mask writes its lowest number there, which every format has as -infinity."""
    pending: list[Value] = []
    for node in graph.nodes:
        if node.operator.attention == "softmax":
            pending.append(node.data_input())
        elif node.operator.attention == "fused":
            pending += [v for v in node.inputs[3:] if v is not None]
    found: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in found or value.is_constant:
            continue
        found.add(value)
        made = value.producer
        if made is not None and (made.operator.combines_two or made.operator.move):
            pending += made.dynamic_inputs()
    return frozenset(found)


# -- attention -------------------------------------------------------------------------------------


def _logits(node: Node, known: Mapping[Value, Array]) -> Magnitude | None:
    """Of scale q k^T inside a fused attention; None where its operands are of another form."""
    operands = [node.input(index) for index in range(2)]
    if any(v is None or v not in known for v in operands):
        return None
    q, k = (known[v] for v in operands if v is not None)
    if q.ndim == 3 and node.attributes.get("q_num_heads"):
        q = _heads(q, node.attributes["q_num_heads"])
        k = _heads(k, node.attributes.get("kv_num_heads") or node.attributes["q_num_heads"])
    if q.ndim < 3 or k.ndim != q.ndim or q.shape[-1] != k.shape[-1]:
        return None
    if q.ndim == 4 and q.shape[1] != k.shape[1]:
        if not k.shape[1] or q.shape[1] % k.shape[1]:
            return None
        k = np.repeat(k, q.shape[1] // k.shape[1], 1)
    scale = float(node.attributes.get("scale") or 1 / math.sqrt(q.shape[-1]))
    found = Magnitude()
    for queries, keys in zip(q, k, strict=False):  # one sample at a time
        product = queries.astype(np.float32) @ np.swapaxes(keys, -1, -2).astype(np.float32)
        found = found.merged(Magnitude.of(scale * product))
    return found


def _heads(array: Array, count: int) -> Array:
    """[samples, tokens, channels] as [samples, heads, tokens, channels of a head]."""
    samples, tokens, _ = array.shape
    return array.reshape(samples, tokens, count, -1).swapaxes(1, 2)
