"""Whether generated graphs are what they claim: in float64, by formulas, by search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, combinations
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.norms.spelling_truth import Truth

Array = np.ndarray
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
BATCH = 3  # the size of a dynamic batch
DRAWS = 4  # of each probe, so that a value with one row tells a line from two points
# Large enough for epsilon to vanish, small enough for it to be all, and in between.
SCALES = (1e5, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-10)
_FITS = 1e-8  # a residual, relative to the values, below which a formula holds


def in_double(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every float in float64."""
    double = onnx.ModelProto()
    double.CopyFrom(proto)
    for tensor in double.graph.initializer:
        _widen(tensor)
    for node in double.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = onnx.TensorProto.DOUBLE
            if attribute.name == "value_float":
                array = np.array(attribute.f, np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
            elif attribute.name == "value":
                _widen(attribute.t)
    return double


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


class Unsqueeze(OpRun):
    """onnx's own puts several negative axes at the wrong places below opset 13."""

    op_domain = ""

    def _run(self, data: Array, axes: Any = None) -> tuple[Array]:
        return (np.expand_dims(data, tuple(int(axis) for axis in axes)),)


class Evaluated:
    """A model in float64, with every value of it an output."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = in_double(proto)
        self.graph = self.proto.graph
        # Nodes' further outputs (a BatchNorm's running statistics) are of no interest.
        self.names = [node.output[0] for node in self.graph.node]
        del self.graph.output[:]
        self.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names)
        self._evaluator = ReferenceEvaluator(self.proto, new_ops=[Unsqueeze])

    def sizes(self, name: str) -> tuple[int, ...]:
        (info,) = [i for i in self.graph.input if i.name == name]
        return tuple(d.dim_value or BATCH for d in info.type.tensor_type.shape.dim)

    def feeds(self, scale: float, seed: int = 0, offset: float = 0.0) -> dict[str, Array]:
        """Normal inputs; x with ``offset`` times a normal number added to each row."""
        random = np.random.default_rng(seed)
        feeds = {}
        for info in self.graph.input:
            sizes = self.sizes(info.name)
            x = random.standard_normal(sizes)
            if len(sizes):
                x = x + offset * random.standard_normal((*sizes[:-1], 1))
            feeds[info.name] = np.asarray(np.abs(x) + 0.5 if not sizes else scale * x)
        return feeds

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with np.errstate(all="ignore"):
            results = self._evaluator.run(None, dict(feeds))
        return dict(feeds) | dict(zip(self.names, map(np.asarray, results), strict=True))

    def stacked(self, scale: float) -> dict[str, Array]:
        """Every value for several draws of the inputs, [draws, ...]."""
        runs = [self(self.feeds(scale, seed, offset=1.0)) for seed in range(DRAWS)]
        return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def formula(truth: Truth, x: Array) -> Array:
    """What ``truth`` makes of ``x``."""
    shape = [n if i in truth.axes else 1 for i, n in enumerate(x.shape)]

    def spread(array: Array | None, default: float) -> Array:
        return np.full(shape, default) if array is None else array.reshape(shape)

    if truth.kind == "batch_norm":
        centred, variance = x - spread(truth.mean, 0.0), spread(truth.variance, 1.0)
    else:
        mean = x.mean(truth.axes, keepdims=True) if truth.kind == "layer_norm" else 0.0
        centred = x - mean
        variance = np.square(centred).mean(truth.axes, keepdims=True)
    normalised = centred / np.sqrt(variance + truth.epsilon)
    return np.asarray(normalised * spread(truth.gamma, 1.0) + spread(truth.beta, 0.0))


def norms_inside(evaluated: Evaluated) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """Every (kind, input, output, axes) of a LayerNorm or RMSNorm anywhere in the graph.

    Looked for between all values of one shape, over all sets of axes but the first, whatever gamma
    and beta over these axes are; epsilon has to be positive.
    """
    probes = [evaluated.stacked(scale) for scale in SCALES]
    found = []
    for entry, exit_value in _pairs(evaluated, probes[0]):
        values = [(p[entry], p[exit_value]) for p in probes]
        found += [(kind, entry, exit_value, axes) for kind, axes in norms_between(values)]
    return found


def norms_between(values: list[tuple[Array, Array]]) -> list[tuple[str, tuple[int, ...]]]:
    """The kinds and axes of norms that map x to y, for pairs of them ([draws, ...]) at SCALES."""
    if not all(np.all(np.isfinite(y)) for _, y in values):
        return []
    axes = range(2, values[0][0].ndim)  # behind the draws and the batch
    sets = chain.from_iterable(combinations(axes, k) for k in range(1, len(axes) + 1))
    kinds = ("layer_norm", "rms_norm")
    return [
        (kind, tuple(axis - 1 for axis in some))
        for some in sets
        for kind in kinds
        if _is_norm(values, kind, some)
    ]


def _pairs(evaluated: Evaluated, values: Mapping[str, Array]) -> Iterator[tuple[str, str]]:
    """Values of one shape, of which the second depends on the first and constants alone."""
    producers = {node.output[0]: node for node in evaluated.graph.node}
    inputs = {info.name for info in evaluated.graph.input}
    dynamic = set(inputs)
    for node in evaluated.graph.node:
        if any(name in dynamic for name in node.input):
            dynamic.update(node.output)
    for exit_value in producers:
        for entry in dynamic - {exit_value}:
            same = values[entry].shape == values[exit_value].shape and values[entry].ndim > 2
            if same and exit_value in dynamic and _closed(producers, inputs, entry, exit_value):
                yield entry, exit_value


def _closed(
    producers: Mapping[str, onnx.NodeProto], inputs: set[str], entry: str, exit_value: str
) -> bool:
    pending, seen, reached = [exit_value], {entry}, False
    while pending:
        name = pending.pop()
        reached = reached or name == entry
        if name in seen:
            continue
        if name in inputs:
            return False
        seen.add(name)
        if name in producers:
            pending.extend(producers[name].input)
    return reached


def _is_norm(values: list[tuple[Array, Array]], kind: str, axes: tuple[int, ...]) -> bool:
    x, y = values[0]
    if np.prod([x.shape[axis] for axis in axes]) == 1 or not np.any(np.std(y, axis=axes) > 0):
        return False
    with np.errstate(all="ignore"):
        normalised = _normalised(x, kind, axes, 0.0)
        weight, bias = _fitted(normalised, y, axes)
        if not _agree(normalised * weight + bias, y, weight):
            return False
        # Epsilon is found best where it is about as large as the variance. One beyond all
        # variances would make any linear map a norm.
        largest = np.square(_centred(x, kind, axes)).mean()
        found = [_epsilon(u, v - bias, weight, kind, axes) for u, v in values[1:]]
        return any(_holds(values, kind, axes, e) for e in found if 0 < e < largest)


def _epsilon(x: Array, y: Array, weight: Array, kind: str, axes: tuple[int, ...]) -> float:
    centred = _centred(x, kind, axes)
    scaled, power = weight * centred, np.square(centred).mean(axes)
    inverse = np.sum(y * scaled, axes) / np.sum(np.square(scaled), axes)
    found = 1 / np.square(inverse) - power
    found = found[np.isfinite(found)]  # a row of zeros tells nothing
    epsilon = float(np.median(found)) if found.size else 0.0
    return epsilon if epsilon > 1e-6 * power.mean() else 0.0


def _holds(
    values: list[tuple[Array, Array]], kind: str, axes: tuple[int, ...], epsilon: float
) -> bool:
    """Whether the formula with ``epsilon`` holds for all probes."""
    x, y = values[1]  # the large probe has lost digits of the bias
    weight, bias = _fitted(_normalised(x, kind, axes, epsilon), y, axes)
    return all(
        _agree(_normalised(u, kind, axes, epsilon) * weight + bias, v, weight) for u, v in values
    )


def _agree(a: Array, b: Array, weight: Array) -> bool:
    return bool(np.abs(a - b).max() <= _FITS * max(np.abs(b).max(), np.abs(weight).max()))


def _centred(x: Array, kind: str, axes: tuple[int, ...]) -> Array:
    return np.asarray(x - x.mean(axes, keepdims=True)) if kind == "layer_norm" else x


def _normalised(x: Array, kind: str, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = _centred(x, kind, axes)
    root = np.sqrt(np.square(centred).mean(axes, keepdims=True) + epsilon)
    return np.where(root > 0, centred / root, 0.0)  # a row of zeros stays one


def _fitted(normalised: Array, y: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    rows = tuple(axis for axis in range(y.ndim) if axis not in axes)
    z = normalised - normalised.mean(rows, keepdims=True)
    target = y - y.mean(rows, keepdims=True)
    weight = (z * target).sum(rows, keepdims=True) / np.square(z).sum(rows, keepdims=True)
    bias = y.mean(rows, keepdims=True) - weight * normalised.mean(rows, keepdims=True)
    return np.asarray(weight), np.asarray(bias)
