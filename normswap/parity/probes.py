"""The kinds of probes: how many rows, how long, and what floating inputs hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, is_floating
from normswap.io.bounds import LARGEST_EXAMPLE
from normswap.io.preprocessing import Preprocessing
from normswap.model import InputSpec, Model
from normswap.parity.site_pairs import layers

ROWS: Final = 8  # of each kind; the batch where it is dynamic
EXTREMES: Final = ("large_values", "subnormal")
LENGTHS: Final = ("shorter", "longer")

_LARGE_MEAN = 100.0
_HUGE_MEAN = 1e4
_TINY_DEVIATION = 1e-3
_OUTLIER_FACTOR = 100.0
_LEAST_LARGE, _LARGEST = 5, 40  # powers of two; LayerNorm's squares stay finite in float32
_LARGEST_HALF = 14  # a quarter of float16's range

Fill = Callable[[np.random.Generator, tuple[int, ...], np.dtype[Any]], Array]


@dataclass(frozen=True)
class Kind:
    """``fill``: float64 numbers for a floating input of a shape and dtype. ``batch``: the size of
    dynamic batch axes. ``rows``: how many at least, all probes together; ``few`` of them show
    what the kind is for. ``length``: what becomes of other dynamic axes. ``only_for``: which inputs
    a model must have for the kind to tell anything new."""

    fill: Fill
    batch: int = ROWS
    rows: int = ROWS
    few: int = ROWS
    length: Literal["same", "shorter", "longer"] = "same"
    only_for: Literal["all", "floats", "features", "images", "lengths"] = "floats"


def _per_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *(1 for _ in shape[1:]))


def _channel_axis(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) >= 4 else len(shape) - 1


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return np.asarray(rng.standard_normal(shape))


def _large_mean(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return _normal(rng, shape, dtype) + _LARGE_MEAN * rng.choice([-1.0, 1.0], _per_row(shape))


def _huge_mean(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return _normal(rng, shape, dtype) + _HUGE_MEAN * rng.choice([-1.0, 1.0], _per_row(shape))


def _tiny_variance(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return _TINY_DEVIATION * _normal(rng, shape, dtype)


def _constant(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    if not shape:
        return _normal(rng, shape, dtype)
    # Along channels it varies: a norm over equal numbers amplifies the rounding of their mean by
    # 1/sqrt(epsilon), which tells implementations apart that are both right. Zeros are exact.
    kept = (0, _channel_axis(shape))
    sizes = tuple(size if axis in kept else 1 for axis, size in enumerate(shape))
    array = np.array(np.broadcast_to(_normal(rng, sizes, dtype), shape))
    if len(array) > 1:
        array[0] = 0
    return array


def _outlier_channel(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    array = _normal(rng, shape, dtype)
    if not shape:
        return array
    axis = _channel_axis(shape)
    index = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    outlier = rng.integers(0, shape[axis], _per_row(shape))
    return np.where(index == outlier, _OUTLIER_FACTOR * array, array)


def _large_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    most = _LARGEST_HALF if dtype == np.float16 else _LARGEST
    powers = np.linspace(_LEAST_LARGE, most, shape[0] if shape else 1)
    return rng.uniform(-1, 1, shape) * np.exp2(powers).reshape(_per_row(shape))


def _subnormal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    # Half of them zeros, of either sign.
    return smallest * rng.uniform(-0.9, 0.9, shape) * rng.choice([-0.0, 0.0, 1.0, 1.0], shape)


KINDS: Final[dict[str, Kind]] = {
    "normal": Kind(_normal, only_for="all"),
    "batch_1": Kind(_normal, batch=1, few=2, only_for="all"),
    "large_mean": Kind(_large_mean),
    "tiny_variance": Kind(_tiny_variance),
    "constant": Kind(_constant, only_for="all"),
    "outlier_channel": Kind(_outlier_channel),
    "batch_3": Kind(_normal, batch=3, few=3, only_for="all"),
    "shorter": Kind(_normal, length="shorter", only_for="lengths"),
    "longer": Kind(_normal, batch=3, rows=3, length="longer", only_for="lengths"),
    "large_values": Kind(_large_values),
    "subnormal": Kind(_subnormal),
    "huge_mean": Kind(_huge_mean, only_for="features"),
    "pictures": Kind(_normal, only_for="images"),  # draw.py fills in the image input
}


_LARGE = 100_000_000  # parameters; each row of such a model takes seconds in float64
_FEW_ROWS = 3
Effort = Literal["quick", "full"]
_QUICK = 2**32  # multiplications that the rows of one quick kind may take
_LEAST_ROWS = 2


@dataclass(frozen=True)
class Probe:
    """Arrays for every input, by name. ``name`` is the kind; several probes may share it."""

    name: str
    feeds: dict[str, Array]


def make_probes(model: Model, seed: int = 0, effort: Effort = "full") -> list[Probe]:
    """The probes of every kind that applies to ``model``, kind by kind.

    The same model and seed give the same probes. Each kind has 8 rows or a few more (``longer``
    three), in models of more than 100 million parameters 3 at most, or one batch where the batch is
    fixed and larger. With a quick ``effort`` the batches of one and three have as few rows as show
    what they are for, and models of more than half a billion multiplications a row have fewer
    rows of every kind, down to 2. Kinds, by what floating inputs hold (a channel is axis 1 of
    inputs of rank 4 and more, which are taken as NCHW, else the last axis):

    * ``normal``: standard normal, a batch of 8 where the batch is dynamic.
    * ``batch_1``, ``batch_3``: the same in batches of one and of three (left out where every batch
      is fixed).
    * ``large_mean``: standard normal plus a mean of +100 or -100 per row.
    * ``tiny_variance``: normal, standard deviation 1e-3.
    * ``constant``: one standard normal number per row and channel; zeros in the first of several
      rows.
    * ``outlier_channel``: standard normal, one channel per row times 100.
    * ``shorter``, ``longer``: ``normal`` with the dynamic axes but the batch at half and at three
      halves of the example's size (double for images): for models that have such axes. The
      reference may refuse them, its position embeddings being what they are; the contract then
      has a finding that is not fatal, and compares nothing of this kind.
    * ``large_values``: uniform, rows between +-2^5 and +-2^40 (2^14 in float16), so that a part in
      half precision overflows. ``subnormal``: zeros and numbers below the smallest normal one. In
      these two (``EXTREMES``) the reference itself may overflow.
    * ``huge_mean``: as ``large_mean``, with 1e4: for inputs that are no images, in dtypes that
      tell 1e4 from 1e4 + 0.01.
    * ``pictures``: images of pixels 0..255, noise and smooth ones, normalised as
      ``model.preprocessing`` says: for models that have one.

    Integer inputs that index a constant table are token ids within it: random ones, then the
    largest id ([EOS], where CLIP pools) at a place that goes from the first to the last over a
    kind's rows, then zeros; ``constant`` repeats one id per row. Masks are one up to [EOS];
    position ids count; other integers stay in their example's range. A model without floating
    inputs gets the kinds that tell something about ids: ``normal``, the batches, ``constant`` and
    the lengths. Dynamic axes of one name get one size; all but the batch take the example's.

    Raises NormswapError for an input of a dtype that no probe can be drawn for.
    """
    most = _FEW_ROWS if _is_large(model) else ROWS
    if effort == "quick":
        most = min(most, max(_LEAST_ROWS, _QUICK // max(_multiplications(model), 1)))
    return [
        probe
        for name, kind in KINDS.items()
        if _applies(kind, model)
        for probe in _probes(model, name, seed, min(kind.few if effort == "quick" else ROWS, most))
    ]


def _applies(kind: Kind, model: Model) -> bool:
    if kind.batch != ROWS and kind.length == "same":
        return _sizes(model, kind.batch) != _sizes(model, ROWS)
    floats = [spec for spec in model.inputs if is_floating(spec.dtype)]
    return {
        "all": True,
        "floats": bool(floats),
        "features": any(_takes_huge_means(spec) for spec in floats),
        "images": any(_takes_pictures(spec, model) for spec in floats),
        "lengths": _has_other_lengths(kind, model),
    }[kind.only_for]


def _has_other_lengths(kind: Kind, model: Model) -> bool:
    """Whether there are axes of other lengths to try, with which the inputs do not become larger
    than any that a model may have: many axes that are all longer multiply."""
    sizes = _sizes(model, kind.batch, kind.length)
    count = sum(
        math.prod(sizes[n] if isinstance(n, str) else n for n in spec.shape)
        for spec in model.inputs
    )
    changes = _sizes(model, ROWS, kind.length) != _sizes(model, ROWS)
    return changes and count <= LARGEST_EXAMPLE


def _probes(model: Model, name: str, seed: int, most: int) -> Iterator[Probe]:
    """``most``: how many rows at most, unless a batch has more."""
    kind, rows = KINDS[name], 0
    # Where there are few rows, those of other kinds end elsewhere ([EOS]).
    draw = list(KINDS).index(name) if most < _FEW_ROWS else 0
    while rows < min(kind.rows, most):
        batch = min(kind.batch, most) if kind.batch == ROWS else kind.batch
        feeds = draw_feeds(model, name, batch, [seed, draw])
        yield Probe(name, feeds)
        rows += max(1, *(len(array) if array.ndim else 1 for array in feeds.values()))
        draw += 1


def _is_large(model: Model) -> bool:
    constants = (v for v in model.graph.values() if v.is_constant and v.producer is None)
    return sum(math.prod(value.shape or ()) for value in constants) > _LARGE


def _multiplications(model: Model) -> int:
    """Of the linear layers and convolutions, for one row."""
    rows = max((len(a) for a in model.examples.values() if a.ndim), default=1)
    total = 0
    for layer in layers(model.graph):
        places = math.prod(layer.output.shape or ()) // max(layer.sizes[0], 1)
        total += places * math.prod(layer.sizes)
    return total // max(rows, 1)


def draw_feeds(model: Model, kind: str, batch: int, seed: list[int]) -> dict[str, Array]:
    """Arrays for every input of ``model``: one probe of ``kind`` (see ``make_probes``).

    ``batch``: the size of dynamic batch axes. ``seed``: ends with the number of the draw.
    Raises NormswapError as ``make_probes`` does.
    """
    rng = np.random.default_rng([*seed, list(KINDS).index(kind)])
    sizes = _sizes(model, batch, KINDS[kind].length)
    lengths: dict[tuple[int, ...], Array] = {}

    def kept(shape: tuple[int, ...]) -> Array:
        """True up to each row's [EOS]; the same for all inputs of one shape."""
        if shape not in lengths:
            lengths[shape] = up_to_eos(rng, shape, seed[-1])
        return lengths[shape]

    feeds = {}
    for spec in model.inputs:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        table = vocabulary(model.graph, spec)
        if "mask" in spec.name:
            mask = kept(shape) if len(shape) == 2 else np.ones(shape, bool)
            feeds[spec.name] = mask.astype(spec.dtype)
        elif is_floating(spec.dtype):
            feeds[spec.name] = _floats(model, spec, kind, rng, shape).astype(spec.dtype)
        elif "position" in spec.name and shape:
            feeds[spec.name] = np.broadcast_to(np.arange(shape[-1]), shape).astype(spec.dtype)
        elif table is not None and shape:
            ids = token_ids(rng, kept(shape), table, repeat=kind == "constant")
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


def _floats(
    model: Model, spec: InputSpec, kind: str, rng: np.random.Generator, shape: tuple[int, ...]
) -> Array:
    known = model.preprocessing
    if kind == "pictures" and isinstance(known, Preprocessing) and _takes_pictures(spec, model):
        return pictures(rng, shape, known)
    if kind == "huge_mean" and not _takes_huge_means(spec):
        kind = "large_mean"
    return KINDS[kind].fill(rng, shape, spec.dtype)


def _takes_pictures(spec: InputSpec, model: Model) -> bool:
    known = model.preprocessing
    return (
        isinstance(known, Preprocessing)
        and len(spec.shape) == 4
        and known.channels in (spec.shape[1], *model.examples[spec.name].shape[1:2])
    )


def _takes_huge_means(spec: InputSpec) -> bool:
    return len(spec.shape) in (2, 3) and float(ml_dtypes.finfo(spec.dtype).eps) < 1e-6


def _sizes(model: Model, batch: int, length: str = "same") -> dict[str, int]:
    """A size for every dynamic axis by its name; leading axes are batches."""
    sizes: dict[str, int] = {}
    for spec in model.inputs:
        example = model.examples[spec.name].shape
        for name, size in zip(spec.shape, example, strict=True):
            if isinstance(name, str):
                sizes[name] = _resized(size, length, len(spec.shape))
    batches = {spec.shape[0] for spec in model.inputs if spec.shape}
    return {name: batch if name in batches else size for name, size in sizes.items()}


def _resized(size: int, length: str, rank: int) -> int:
    if length == "shorter":
        return max(1, size // 2)
    if length == "longer":  # the sides of an image stay multiples of the patches'
        return 2 * size if rank >= 4 else size + max(1, size // 2)
    return size


def _range(spec: InputSpec, examples: Mapping[str, Array]) -> tuple[int, int]:
    if spec.dtype == np.uint8 and len(spec.shape) == 4:
        return 0, 255
    example = examples[spec.name]
    return (int(example.min()), int(example.max())) if example.size else (0, 0)


_WAVES = 4


def pictures(
    rng: np.random.Generator, shape: tuple[int, ...], preprocessing: Preprocessing
) -> Array:
    """[N, C, H, W], float32: pixels of 0..255 of C channels, normalised as the model wants them.

    The even rows are uniform noise, the odd ones sums of a few waves per channel.
    """
    rows = []
    for row in range(shape[0]):
        pixels = _smooth(rng, shape[1:]) if row % 2 else rng.integers(0, 256, shape[1:])
        rows.append(preprocessing.normalised(pixels.astype(np.uint8).transpose(1, 2, 0)))
    return np.stack(rows)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """[C, H, W] between 0 and 255, both of which every channel reaches."""
    channels, height, width = shape
    down, across, phases = rng.uniform(-1.5, 1.5, (3, channels, _WAVES, 1, 1))
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    waves = np.cos(2 * np.pi * (down * y + across * x + phases)).sum(1)
    low, high = (f(waves, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return np.asarray(255 * (waves - low) / np.where(high > low, high - low, 1))


def vocabulary(graph: Graph, spec: InputSpec) -> int | None:
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
            elif node.operator.passes_through and index == 0 and node not in seen:
                seen.add(node)
                stack.append(node.output)
    return min(rows, default=None)


def up_to_eos(rng: np.random.Generator, shape: tuple[int, ...], draw: int) -> Array:
    """True up to each row's [EOS], whose places go from the first to the last.

    Several draws of few rows go on where the one before ended.
    """
    rows, length = math.prod(shape[:-1]), shape[-1]
    places = np.linspace(0, length - 1, max(rows, ROWS)).round().astype(int)
    if rows >= ROWS:
        places = rng.permutation(places)
    else:  # a stride coprime to the number, so that any few are spread over the sequence
        places = places[(5 * (draw * rows + np.arange(rows)) + len(places) - 1) % len(places)]
    return (np.arange(length) <= places[:, None]).reshape(shape)


def token_ids(rng: np.random.Generator, kept: Array, vocabulary: int, repeat: bool) -> Array:
    """Random ids where ``kept``, the largest id at the last place kept, then zeros.

    ``repeat``: one id throughout a row.
    """
    shape = (*kept.shape[:-1], 1) if repeat else kept.shape
    first = min(1, vocabulary - 1)  # zero is left to the padding
    ids = rng.integers(first, max(vocabulary - 1, first + 1), shape)
    ids = np.where(kept, ids, 0)
    np.put_along_axis(ids, kept.sum(-1, keepdims=True) - 1, vocabulary - 1, axis=-1)
    return ids
