"""Probes: inputs that are likely to show a difference, drawn from a model's own inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.arrays import is_floating
from normswap.graph.graph import Array, Graph, Value
from normswap.model import InputSpec, Model

_ROWS = 8  # of each kind; the batch where it is dynamic
_LARGE_MEAN = 100.0
_TINY_DEVIATION = 1e-3
_OUTLIER_FACTOR = 100.0
_SMALL = 2**16  # elements of a constant that neighbours vary
_PASS_IDS = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice")


@dataclass(frozen=True)
class Probe:
    """Arrays for every input, by name. ``name`` is the kind; several probes may share it."""

    name: str
    feeds: dict[str, Array]


def make_probes(model: Model, seed: int = 0) -> list[Probe]:
    """The probes of every kind that applies to ``model``, kind by kind.

    The same model and seed give the same probes. Each kind has 8 rows, or one batch where the
    batch is fixed and larger. Kinds, by what floating inputs hold (a channel is axis 1 of inputs of
    rank 4 and more, which are taken as NCHW, else the last axis):

    * ``normal``: standard normal, a batch of 8 where the batch is dynamic.
    * ``batch_1``: the same with a batch of one (left out where every batch is fixed).
    * ``large_mean``: standard normal plus a mean of +100 or -100 per row.
    * ``tiny_variance``: normal, standard deviation 1e-3.
    * ``constant``: one standard normal number per row and channel; zeros in the first of several
      rows.
    * ``outlier_channel``: standard normal, one channel per row times 100.

    Integer inputs that index a constant table are token ids within it: random ones, then the
    largest id ([EOS], where CLIP pools) at a place that varies by row, then zeros; ``constant``
    repeats one id per row. Masks are one up to [EOS]; position ids count; other integers stay in
    their example's range. A model without floating inputs gets the first two kinds and
    ``constant``. Dynamic axes of one name get one size; all but the batch take the example's.

    Raises NormswapError for an input of a dtype that no probe can be drawn for.
    """
    floating = any(is_floating(spec.dtype) for spec in model.inputs)
    kinds = [kind for kind in _KINDS if floating or kind in _KINDS_OF_IDS]
    if _sizes(model, 1) == _sizes(model, _ROWS):
        kinds.remove("batch_1")
    return [probe for kind in kinds for probe in _probes(model, kind, seed)]


def _probes(model: Model, kind: str, seed: int) -> Iterator[Probe]:
    batch = 1 if kind == "batch_1" else _ROWS
    rows = draw = 0
    while rows < _ROWS:
        feeds = draw_feeds(model, kind, batch, [seed, draw])
        yield Probe(kind, feeds)
        rows += max(1, *(len(array) if array.ndim else 1 for array in feeds.values()))
        draw += 1


def draw_feeds(model: Model, kind: str, batch: int, seed: list[int]) -> dict[str, Array]:
    """Arrays for every input of ``model``: one probe of ``kind`` (see ``make_probes``).

    ``batch``: the size of dynamic batch axes. Raises NormswapError as ``make_probes`` does.
    """
    rng = np.random.default_rng([*seed, list(_KINDS).index(kind)])
    sizes = _sizes(model, batch)
    lengths: dict[tuple[int, ...], Array] = {}

    def shape_of(spec: InputSpec) -> tuple[int, ...]:
        return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)

    def kept(shape: tuple[int, ...]) -> Array:
        """True up to each row's [EOS]; the same for all inputs of one shape."""
        if shape not in lengths:
            lengths[shape] = _up_to_eos(rng, shape)
        return lengths[shape]

    feeds = {}
    for spec in model.inputs:
        shape = shape_of(spec)
        vocabulary = _vocabulary(model.graph, spec)
        if "mask" in spec.name:
            mask = kept(shape) if len(shape) == 2 else np.ones(shape, bool)
            feeds[spec.name] = mask.astype(spec.dtype)
        elif is_floating(spec.dtype):
            feeds[spec.name] = _KINDS[kind](rng, shape).astype(spec.dtype)
        elif "position" in spec.name and shape:
            feeds[spec.name] = np.broadcast_to(np.arange(shape[-1]), shape).astype(spec.dtype)
        elif vocabulary is not None and shape:
            ids = _token_ids(rng, kept(shape), vocabulary, repeat=kind == "constant")
            feeds[spec.name] = ids.astype(spec.dtype)
        elif np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
            low, high = _range(spec, model.examples)
            feeds[spec.name] = rng.integers(low, high + 1, shape).astype(spec.dtype)
        else:
            raise NormswapError(
                f"{model.name}: no probe can be drawn for the {spec.dtype.name} input "
                f"'{spec.name}'; give data"
            )
    return feeds


class Neighbours:
    """``model`` with inputs and small constants off by an ulp, each time in another way.

    Every number of the floating inputs and of the constants of 2 to 65,536 elements (biases,
    gammas, position embeddings: there are some in every block) is off by eps * |x|, up or down at
    random. What comes out differs from the model's outputs by as much as rounding may.
    Raises NormswapError where the runtime refuses to take constants as inputs.
    """

    def __init__(self, model: Model) -> None:
        graph = model.graph
        self._names = [spec.name for spec in model.inputs]
        constants = [value for value in graph.values() if _is_small_constant(value)]
        self._constants = [np.asarray(graph.constant(value)) for value in constants]
        inputs = [graph.value(name) for name in self._names]
        self._run = graph.slice([*inputs, *constants], graph.outputs)

    def run(self, feeds: Mapping[str, Array], draw: int) -> list[Array]:
        """The outputs in order, in the graph's own dtypes; another ``draw``, other neighbours."""
        rng = np.random.default_rng(draw)
        arrays = [*(feeds[name] for name in self._names), *self._constants]
        outputs = self._run([_one_ulp_off(rng, array) for array in arrays])
        return [np.asarray(array) for array in outputs]


def _is_small_constant(value: Value) -> bool:
    if not value.is_constant or value.producer is not None or not value.uses:
        return False
    if value.dtype is None or not is_floating(value.dtype) or value.shape is None:
        return False
    return 1 < math.prod(value.shape) <= _SMALL


def _one_ulp_off(rng: np.random.Generator, array: Array) -> Array:
    if not is_floating(array.dtype):
        return array
    ulps = float(ml_dtypes.finfo(array.dtype).eps) * rng.choice([-1.0, 1.0], array.shape)
    with np.errstate(over="ignore"):
        moved = (array.astype(np.float64) * (1 + ulps)).astype(array.dtype)
    return np.where(np.isfinite(moved), moved, array)


def _sizes(model: Model, batch: int) -> dict[str, int]:
    """A size for every dynamic axis by its name; leading axes are batches."""
    sizes: dict[str, int] = {}
    for spec in model.inputs:
        example = model.examples[spec.name].shape
        sizes |= {s: n for s, n in zip(spec.shape, example, strict=True) if isinstance(s, str)}
    batches = {spec.shape[0] for spec in model.inputs if spec.shape}
    return {name: batch if name in batches else size for name, size in sizes.items()}


def _vocabulary(graph: Graph, spec: InputSpec) -> int | None:
    """The rows of the smallest constant table that an integer input is an index into."""
    if not np.issubdtype(spec.dtype, np.integer):
        return None
    rows: list[int] = []
    stack, seen = [graph.value(spec.name)], set()
    while stack:
        value = stack.pop()
        for node, index in value.uses:
            table = node.input(0)
            if node.op == "Gather" and index == 1 and table is not None and table.is_constant:
                if table.rank == 2 and table.shape and node.attributes.get("axis") == 0:
                    rows.append(table.shape[0])
            elif node.op in _PASS_IDS and index == 0 and node not in seen:
                seen.add(node)
                stack.append(node.output)
    return min(rows, default=None)


def _up_to_eos(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    rows, length = int(np.prod(shape[:-1])), shape[-1]
    if rows == 1:
        last = rng.integers(length // 2, length, 1)
    else:  # spread over the sequence, so that short and long rows are always there
        last = rng.permutation(np.linspace(min(1, length - 1), length - 1, rows).astype(int))
    return (np.arange(length) <= last[:, None]).reshape(shape)


def _token_ids(rng: np.random.Generator, kept: Array, vocabulary: int, repeat: bool) -> Array:
    shape = (*kept.shape[:-1], 1) if repeat else kept.shape
    first = min(1, vocabulary - 1)  # zero is left to the padding
    ids = rng.integers(first, max(vocabulary - 1, first + 1), shape)
    ids = np.where(kept, ids, 0)
    np.put_along_axis(ids, kept.sum(-1, keepdims=True) - 1, vocabulary - 1, axis=-1)
    return ids


def _range(spec: InputSpec, examples: Mapping[str, Array]) -> tuple[int, int]:
    if spec.dtype == np.uint8 and len(spec.shape) == 4:
        return 0, 255
    example = examples[spec.name]
    return (int(example.min()), int(example.max())) if example.size else (0, 0)


def _per_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *(1 for _ in shape[1:]))


def _channel_axis(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) >= 4 else len(shape) - 1


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.asarray(rng.standard_normal(shape))


def _large_mean(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return _normal(rng, shape) + _LARGE_MEAN * rng.choice([-1.0, 1.0], _per_row(shape))


def _tiny_variance(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return _TINY_DEVIATION * _normal(rng, shape)


def _constant(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if not shape:
        return _normal(rng, shape)
    # Along channels it varies: a norm over equal numbers amplifies the rounding of their mean by
    # 1/sqrt(epsilon), which tells implementations apart that are both right. Zeros are exact.
    kept = (0, _channel_axis(shape))
    sizes = tuple(size if axis in kept else 1 for axis, size in enumerate(shape))
    array = np.array(np.broadcast_to(_normal(rng, sizes), shape))
    if len(array) > 1:
        array[0] = 0
    return array


def _outlier_channel(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    array = _normal(rng, shape)
    if not shape:
        return array
    axis = _channel_axis(shape)
    index = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    outlier = rng.integers(0, shape[axis], _per_row(shape))
    return np.where(index == outlier, _OUTLIER_FACTOR * array, array)


_KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": _normal,
    "batch_1": _normal,
    "large_mean": _large_mean,
    "tiny_variance": _tiny_variance,
    "constant": _constant,
    "outlier_channel": _outlier_channel,
}
_KINDS_OF_IDS = ("normal", "batch_1", "constant")
