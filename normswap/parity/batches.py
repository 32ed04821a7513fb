"""Data as batches of feeds for every input of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.model import Model
from normswap.parity.probes import draw_feeds
from normswap.parity.report import Finding

BATCH = 32


def has_dynamic_batch(model: Model) -> bool:
    """Whether any number of rows may be fed to every input."""
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in model.inputs)


def batches_of(model: Model, data: Data) -> tuple[list[dict[str, Array]], list[Finding]]:
    """The data as feeds for every input of ``model``, and what the reader must know of them."""
    leading = {spec.shape[0] for spec in model.inputs if spec.name in data.feeds}
    fixed = [size for size in leading if isinstance(size, int)]
    if len(fixed) > 1:
        raise NormswapError(f"{model.name}: its inputs have several fixed batches: {fixed}")
    size = fixed[0] if fixed else BATCH
    count = data.count - data.count % size if fixed else data.count
    if not count:
        raise NormswapError(f"{model.name} takes batches of {size}, the data holds {data.count}")
    findings = []
    if count < data.count:
        note = f"{data.count - count} samples were left out: the model takes batches of {size}"
        findings.append(Finding("data", note, fatal=False))
    missing = [spec.name for spec in model.inputs if spec.name not in data.feeds]
    masks = [name for name in missing if name in masks_of(model, data)]
    for names, what in ((masks, "taken as ones"), (_without(missing, masks), "drawn at random")):
        if names:
            note = f"not in the data and {what}: {', '.join(names)}"
            findings.append(Finding("data", note, fatal=False))
    whole = Data({name: array[:count] for name, array in data.feeds.items()}, None)
    return [_complete(model, feeds, i) for i, feeds in enumerate(whole.batches(size))], findings


def _complete(model: Model, feeds: dict[str, Array], draw: int) -> dict[str, Array]:
    """``feeds`` and, for inputs that it lacks, random ones of fitting sizes."""
    if all(spec.name in feeds for spec in model.inputs):
        return feeds
    sizes: dict[int | str, int] = {}
    for spec in model.inputs:
        if spec.name in feeds:
            sizes |= zip(spec.shape, feeds[spec.name].shape, strict=True)
    fixed = [replace(s, shape=tuple(sizes.get(n, n) for n in s.shape)) for s in model.inputs]
    rows = len(next(iter(feeds.values())))
    drawn = draw_feeds(replace(model, inputs=tuple(fixed)), "normal", rows, [0, draw])
    shapes = {a.shape for a in feeds.values() if np.issubdtype(a.dtype, np.integer)}
    for name, array in drawn.items():
        if _is_mask(name) and array.shape in shapes:
            drawn[name] = np.ones_like(array)
    return {**drawn, **feeds}


def masks_of(model: Model, data: Data) -> set[str]:
    """The inputs that mask given ids and are not given themselves: all of the ids count then."""
    ids = [a for a in data.feeds.values() if np.issubdtype(a.dtype, np.integer)]
    sizes = {array.shape[1:] for array in ids}
    return {
        spec.name
        for spec in model.inputs
        if _is_mask(spec.name) and spec.name not in data.feeds and _fits(spec.shape[1:], sizes)
    }


def _is_mask(name: str) -> bool:
    return "mask" in name


def _fits(shape: Sequence[int | str], sizes: Collection[tuple[int, ...]]) -> bool:
    """Whether arrays of one of the ``sizes`` have this shape, whatever its dynamic sizes are."""
    return any(
        len(size) == len(shape)
        and all(isinstance(a, str) or a == b for a, b in zip(shape, size, strict=True))
        for size in sizes
    )


def _without(names: Sequence[str], others: Collection[str]) -> list[str]:
    return [name for name in names if name not in others]


def checked_labels(labels: Any, count: int) -> Array | None:
    """``labels`` as integers [N]. Raises NormswapError unless there are ``count`` of them."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
        shape = "x".join(map(str, array.shape)) or "a scalar"
        raise NormswapError(
            f"labels must be {count} integers, one per sample; got {array.dtype.name} {shape}"
        )
    return array
