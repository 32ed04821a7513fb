"""A model run as a quantiser would make it: weights and what products read rounded to integers.

What is modelled. The weight of every linear layer and convolution is rounded, symmetric about 0,
with one scale, or one for each output channel. What a product reads (a linear layer, a convolution,
a MatMul of two values, a fused attention) is rounded with one scale and zero point for the whole
tensor, from its least and largest value on calibration data, as ONNX Runtime's ``quantize_static``
does by default. All else is computed as it is: norms, sums, activations, softmax. Tables of
embeddings and biases are not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Node, Runner, Value, is_floating
from normswap.graph.linear import convolution_at, linear_at
from normswap.model import Model
from normswap.precision.integers import IntegerFormat, Range, integer_format

Feeds = Mapping[str, Array]
Hook = Callable[[Value, Array], Array]
_ATTENDED = 3  # queries, keys and values of a fused attention


class QuantisedModel:
    """``model`` with its weights, and what its products read, rounded to integers (see above).

    ``format``: the name of one of ``INTEGER_FORMATS``. ``calibration``: batches of feeds, of which
    come the ranges of what products read; what depends on inputs that they lack is not rounded.
    Raises NormswapError for another format, a model without a product, and values that are not
    finite.

    Examples:
        >>> quantised = QuantisedModel(load("vit.onnx"), "int8", batches)
        >>> (logits,) = quantised.run({"pixel_values": images})
    """

    def __init__(self, model: Model, format: str, calibration: Sequence[Feeds]) -> None:
        self.model, self.format = model, integer_format(format)
        self.graph = model.graph.copy()
        self._reads = _separated(self.graph)
        if not self._reads:
            raise NormswapError(f"{model.name}: has no product to quantise")
        self.ranges = self._calibrated(calibration)
        _round_weights(self.graph, self.format)
        self._run: Runner | None = None

    @property
    def says(self) -> str:
        """What was done, for a report."""
        form, each = self.format, "per channel" if self.format.per_channel else "per tensor"
        return f"weights int{form.weight_bits} {each}, activations int{form.activation_bits}"

    def run(self, feeds: Feeds) -> list[Array]:
        """All outputs in order, in their own dtypes."""
        self.model.check_feeds(feeds)
        graph = self.model.graph
        self._run = self._run or self.slice(graph.inputs, graph.outputs)
        return self._run([np.asarray(feeds[spec.name]) for spec in self.model.inputs])

    def slice(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> Runner:
        """A function that computes ``outputs`` from arrays for ``inputs``, values of the model's
        own graph."""

        def rounded(value: Value, array: Array) -> Array:
            within = self.ranges.get(value)
            return array if within is None else self.format.rounded_activation(array, within)

        return self._slice(self._own(inputs), self._own(outputs), rounded)

    def _own(self, values: Iterable[Value]) -> list[Value]:
        return [self.graph.value(value.name) for value in values]

    def _slice(self, inputs: Sequence[Value], outputs: Sequence[Value], hook: Hook) -> Runner:
        return _Stages(self.graph, self._reads, inputs, outputs, hook)

    def findings(self) -> Iterator[tuple[str, str]]:
        """None: integers do not overflow, they saturate."""
        return iter(())

    def _calibrated(self, calibration: Sequence[Feeds]) -> dict[Value, Range]:
        ranges: dict[Value, Range] = {}

        def note(value: Value, array: Array) -> Array:
            ranges[value] = ranges.get(value, Range()).merged(Range.of([array]))
            return array

        given = [spec.name for spec in self.model.inputs if spec.name in calibration[0]]
        graph, missing = self.graph, {s.name for s in self.model.inputs} - set(given)
        outputs = [v for v in graph.outputs if not missing & {s.name for s in graph.sources([v])}]
        run = self._slice([graph.value(name) for name in given], outputs, note)
        for feeds in calibration:
            run([np.asarray(feeds[name]) for name in given])
        wild = next((v for v, found in ranges.items() if not found.is_finite), None)
        if wild is not None:
            raise NormswapError(
                f"{self.model.name}: '{self._reads[wild].name}' is not finite on the calibration "
                f"data, so it has no range"
            )
        return ranges


def _separated(graph: Graph) -> dict[Value, Value]:
    """Gives each value that a product reads a copy for products alone: these by their copies."""
    copies: dict[Value, Value] = {}
    for node in list(graph.nodes):
        for index in _read_as_integers(node):
            value = node.data_input(index)
            if value.is_constant or value.dtype is None or not is_floating(value.dtype):
                continue
            if value not in copies:
                name = f"{value.name}.as_integers"
                to = {"to": value.dtype}
                copies[value] = graph.insert("Cast", [value], to, name=name, like=value.producer)
            graph.set_input(node, index, copies[value])
    return {copy: value for value, copy in copies.items()}


def _read_as_integers(node: Node) -> range:
    if node.operator.product:
        return range(2)
    attends = node.operator.attention == "fused"
    return range(min(_ATTENDED, len(node.inputs)) if attends else 0)


def _round_weights(graph: Graph, form: IntegerFormat) -> None:
    for node in list(graph.nodes):
        if not node.operator.product:
            continue
        if (linear := linear_at(graph, node)) is not None:
            linear.put(*linear.as_stored(form.rounded_weight(linear.weight), None))
        elif (conv := convolution_at(graph, node)) is not None:
            groups, outs, *rest = conv.weight.shape
            kernel = form.rounded_weight(conv.weight.reshape(groups * outs, *rest))
            conv.put(*conv.as_stored(kernel.reshape(groups, outs, *rest), None))


@dataclass(frozen=True)
class _Stage:
    """Nodes between two roundings. ``copies``: values that are rounded in front of it, by their
    copies; ``ends``: values that nothing behind it reads."""

    copies: Mapping[Value, Value]
    inputs: list[Value]
    outputs: list[Value]
    ends: list[Value]
    run: Runner | None


class _Stages:
    """A runner of a slice that hands to ``hook`` every value that a product reads, for what it
    reads instead. ``reads``: those values, by their copies."""

    def __init__(
        self,
        graph: Graph,
        reads: Mapping[Value, Value],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        hook: Hook,
    ) -> None:
        self._inputs, self._outputs, self._hook = list(inputs), list(outputs), hook
        self._stages = list(_stages(graph, reads, inputs, outputs))

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        known = dict(zip(self._inputs, arrays, strict=True))
        for stage in self._stages:
            for copy, value in stage.copies.items():
                known[copy] = self._hook(copy, np.asarray(known[value]))
            if stage.run is not None:
                found = stage.run([known[value] for value in stage.inputs])
                known.update(zip(stage.outputs, found, strict=True))
            for value in stage.ends:
                known.pop(value, None)
        return [np.asarray(known[value]) for value in self._outputs]


def _stages(
    graph: Graph, reads: Mapping[Value, Value], inputs: Sequence[Value], outputs: Sequence[Value]
) -> Iterator[_Stage]:
    given = set(inputs)
    nodes = graph.ancestors(outputs, stop=inputs)
    level: dict[Value, int] = {}
    by_level: dict[int, list[Node]] = {}
    for node in nodes:
        depth = max((level.get(v, 0) for v in node.dynamic_inputs()), default=0)
        copied = next((v for v in node.outputs if v in reads), None)
        if copied is None:
            by_level.setdefault(depth, []).append(node)
        level |= dict.fromkeys(node.outputs, depth + (copied is not None))
    count = max(level.values(), default=0) + 1
    last: dict[Value, int] = {}
    for node in nodes:
        at = level[node.output]
        for value in node.dynamic_inputs():
            last[value] = max(last.get(value, 0), at)
    for number in range(count):
        own = by_level.get(number, [])
        made = {v for node in own for v in node.outputs}
        wanted = [v for node in own for v in node.dynamic_inputs() if v not in made]
        given_here = [v for v in dict.fromkeys(wanted) if level.get(v, -1) >= 0 or v in given]
        later = [v for v in made if last.get(v, -1) > number or v in outputs]
        ends = [v for v, at in last.items() if at == number and v not in outputs]
        run = graph.slice(given_here, later) if later else None
        copies = {v: reads[v] for v in level if v in reads and level[v] == number}
        yield _Stage(copies, given_here, later, ends, run)
