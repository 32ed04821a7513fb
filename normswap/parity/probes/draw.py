"""``make_probes``: probes of every kind for a model's own inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, is_floating
from normswap.io.preprocessing import Preprocessing
from normswap.model import InputSpec, Model
from normswap.parity.probes.kinds import KINDS, ROWS, Kind
from normswap.parity.probes.pictures import pictures
from normswap.parity.probes.tokens import token_ids, up_to_eos, vocabulary

_LARGE = 100_000_000  # parameters; each row of such a model takes seconds in float64
_FEW_ROWS = 3


@dataclass(frozen=True)
class Probe:
    """Arrays for every input, by name. ``name`` is the kind; several probes may share it."""

    name: str
    feeds: dict[str, Array]


def make_probes(model: Model, seed: int = 0) -> list[Probe]:
    """The probes of every kind that applies to ``model``, kind by kind.

    The same model and seed give the same probes. Each kind has 8 rows or a few more (``longer``
    three), in models of more than 100 million parameters 3 at most, or one batch where the batch is
    fixed and larger. Kinds, by what floating inputs hold (a
    channel is axis 1 of inputs of rank 4 and more, which are taken as NCHW, else the last axis):

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
    return [
        probe
        for name, kind in KINDS.items()
        if _applies(kind, model)
        for probe in _probes(model, name, seed)
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
        "lengths": _sizes(model, ROWS, kind.length) != _sizes(model, ROWS),
    }[kind.only_for]


def _probes(model: Model, name: str, seed: int) -> Iterator[Probe]:
    kind, most = KINDS[name], _FEW_ROWS if _is_large(model) else ROWS
    rows = draw = 0
    while rows < min(kind.rows, most):
        feeds = draw_feeds(model, name, min(kind.batch, most), [seed, draw])
        yield Probe(name, feeds)
        rows += max(1, *(len(array) if array.ndim else 1 for array in feeds.values()))
        draw += 1


def _is_large(model: Model) -> bool:
    constants = (v for v in model.graph.values() if v.is_constant and v.producer is None)
    return sum(math.prod(value.shape or ()) for value in constants) > _LARGE


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
