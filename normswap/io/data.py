"""Calibration and validation data: arrays for some or all of a model's inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from normswap.errors import NormswapError
from normswap.graph.graph import Array, is_floating
from normswap.io.data_files import read_arrays
from normswap.io.data_items import LABELS, joined_arrays, named_arrays, required_image_input
from normswap.io.image_folder import folder_labels, list_images, opener
from normswap.io.images import known_preprocessing, prepare
from normswap.io.preprocessing import Preprocessing
from normswap.io.scratch import chunks, new_array
from normswap.model import InputSpec, Model, Progress, check_array

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Samples along the first axis of every array of ``feeds`` (by input name, possibly not all
    inputs), and ``labels``: integers [N], or None."""

    feeds: dict[str, Array]
    labels: Array | None

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of ``size`` samples each, in order; the last may have fewer."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.feeds.items()}

    def split(self, every: int) -> tuple[Data, Data]:
        """All samples but every ``every``-th, and those."""
        chosen = np.arange(self.count) % every == every - 1
        return self._where(~chosen), self._where(chosen)

    def _where(self, chosen: Array) -> Data:
        labels = None if self.labels is None else self.labels[chosen]
        return Data({name: array[chosen] for name, array in self.feeds.items()}, labels)


def load_data(
    source: Any,
    model: Model,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Data:
    """Data that ``model`` takes, in its inputs' own dtypes.

    ``source`` is one of

    * a path to a folder of images (png, jpeg, webp, bmp, ppm, tiff, gif; subfolders too, in the
      order of their paths), which are prepared as ``model.preprocessing`` says. The subfolders of
      a classifier's images may give labels: see ``image_folder.folder_labels``;
    * a path to a ``.npy`` (one array), ``.npz`` or ``.safetensors`` (a mapping);
    * an array or torch tensor: for the model's image input (the first floating one of rank 4, else
      the first floating one, else its only one);
    * a mapping from input names to arrays, perhaps with ``labels``; any other single name stands
      for the image input;
    * an iterable of any of the last two, or of pairs (item, labels) as a DataLoader gives them:
      arrays of an input's rank are batches and are joined, of one less are samples and are stacked.

    ``samples``: keeps that many, drawn at random by ``seed`` and kept in order; if there are fewer
    all are kept, with a warning. Of a folder no other image is read. Floats are cast to the
    input's float type and integers to its integer type where they fit; uint8 [N, H, W, C] for the
    image input is prepared as images are. What takes more than 1 GiB is mapped from a temporary
    file. ``progress(done, total, what)`` is called while images are read.

    Raises NormswapError naming the file for one that is missing, damaged or holds pickled objects,
    and for a folder without images or with images that cannot be read; images for a model whose
    preprocessing is not known; unknown names; other dtypes or shapes; NaN or infinity; inputs or
    labels of different counts; no samples.
    """
    if samples is not None and samples < 1:
        raise NormswapError(
            f"{_told(source)}: {samples} samples were asked for; ask for one or more"
        )
    if isinstance(source, str | Path) and Path(source).is_dir():
        return _from_folder(Path(source), model, samples, seed, progress)
    where = _told(source)
    arrays = _read(source, model)
    specs = {spec.name: spec for spec in model.inputs}
    labels = arrays.pop(LABELS, None) if LABELS not in specs else None
    if len(arrays) == 1 and not arrays.keys() & specs.keys():
        arrays = {required_image_input(where, model).name: next(iter(arrays.values()))}
    if unknown := sorted(arrays.keys() - specs.keys()):
        raise NormswapError(
            f"{where}: '{unknown[0]}' is not an input of {model.name}; it takes {', '.join(specs)}"
        )
    if not arrays:
        raise NormswapError(f"{where}: holds no array for any of {', '.join(specs)}")
    chosen = _choice(where, _count(where, arrays, labels), samples, seed)
    feeds = {}
    for name, array in arrays.items():
        if _holds_images(array, specs[name], model):
            feeds[name] = _prepared(where, array, chosen, specs[name], model, progress)
        else:
            feeds[name] = _checked(where, specs[name], array, chosen)
    return Data(feeds, None if labels is None else _labels(where, labels[chosen]))


def _told(source: Any) -> str:
    """What errors call the source."""
    return str(source) if isinstance(source, str | Path) else "data"


def _read(source: Any, model: Model) -> dict[str, Array]:
    """The arrays of the source by name."""
    if isinstance(source, str | Path):
        return read_arrays(Path(source))
    if isinstance(source, Data):
        labels = {} if source.labels is None else {LABELS: source.labels}
        return {**source.feeds, **labels}
    if isinstance(source, np.ndarray | torch.Tensor | Mapping):
        return named_arrays(source, model)
    if isinstance(source, Iterable):
        return joined_arrays(source, model)
    raise NormswapError(f"data: takes arrays, files or an iterable, not {type(source).__name__}")


def _from_folder(
    folder: Path, model: Model, samples: int | None, seed: int, progress: Progress | None
) -> Data:
    spec = required_image_input(str(folder), model)
    preprocessing = known_preprocessing(str(folder), model, spec)
    files = list_images(folder)
    labels = folder_labels(files, model)
    chosen = _choice(str(folder), len(files), samples, seed)
    files = [files[index] for index in np.arange(len(files))[chosen]]
    names = [file.as_posix() for file in files]
    opened = opener(folder, files)
    images = prepare(str(folder), names, opened, preprocessing, spec, progress)
    _check_finite(str(folder), spec, images)
    return Data({spec.name: images}, None if labels is None else labels[chosen])


def _count(where: str, arrays: Mapping[str, Array], labels: Array | None) -> int:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    counts |= {} if labels is None else {LABELS: len(labels) if labels.ndim else 0}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
        raise NormswapError(f"{where}: the numbers of samples differ: {told}")
    count = next(iter(counts.values()))
    if not count:
        raise NormswapError(f"{where}: holds no samples")
    return count


def _choice(where: str, count: int, samples: int | None, seed: int) -> Any:
    """What picks the samples out of ``count``: their indices, or a slice of all."""
    if samples is not None and samples > count:
        _log.warning(
            "%s: holds %d samples, fewer than the %d asked for; all are used", where, count, samples
        )
    if samples is None or samples >= count:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(count, samples, replace=False))


def _holds_images(array: Array, spec: InputSpec, model: Model) -> bool:
    """Whether the array is uint8 [N, H, W, C], to be prepared for the input."""
    known = model.preprocessing
    return (
        isinstance(known, Preprocessing)
        and is_floating(spec.dtype)
        and len(spec.shape) == array.ndim == 4
        and array.dtype == np.uint8
        and array.shape[-1] == known.channels != array.shape[1]
    )


def _prepared(
    where: str, array: Array, chosen: Any, spec: InputSpec, model: Model, progress: Progress | None
) -> Array:
    preprocessing = known_preprocessing(where, model, spec)
    indices = np.arange(len(array))[chosen]

    def opened(number: int) -> Image.Image:
        pixels = np.asarray(array[indices[number]])
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    names = [f"number {index}" for index in indices]
    images = prepare(where, names, opened, preprocessing, spec, progress)
    _check_finite(where, spec, images)
    return images


def _checked(where: str, spec: InputSpec, array: Array, chosen: Any) -> Array:
    """The chosen samples in the input's dtype; the first axis is the samples'."""
    if not isinstance(chosen, slice):
        kept = new_array(where, (len(chosen), *array.shape[1:]), array.dtype)
        for part in chunks(kept):
            kept[part] = array[chosen[part]]
        array = kept
    cast = _cast(where, spec, np.asarray(array))
    if cast is None and array.dtype == np.uint8 and is_floating(spec.dtype):
        raise NormswapError(
            f"{where}: input '{spec.name}' takes {spec.dtype.name}, got uint8: scale the pixels "
            "and apply the model's mean and standard deviation first"
        )
    if cast is None:
        cast = array  # check_array says what is wrong
    check_array(where, replace(spec, shape=("N", *spec.shape[1:])), cast)
    _check_finite(where, spec, cast)
    return cast


def _cast(where: str, spec: InputSpec, array: Array) -> Array | None:
    """The array in the input's dtype; None for another kind of numbers or integers too large."""
    if array.dtype == spec.dtype:
        return np.ascontiguousarray(array)
    integers = array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)
    exact = integers and np.issubdtype(spec.dtype, np.integer)
    if not exact and not (is_floating(array.dtype) and is_floating(spec.dtype)):
        return None
    cast = new_array(where, array.shape, spec.dtype)
    for part in chunks(array):
        with np.errstate(over="ignore"):
            cast[part] = array[part].astype(spec.dtype)
        if exact and not np.array_equal(cast[part], array[part]):
            return None
    return cast


def _check_finite(where: str, spec: InputSpec, array: Array) -> None:
    if not is_floating(spec.dtype):
        return
    if bad := sum(int(np.count_nonzero(~np.isfinite(array[part]))) for part in chunks(array)):
        raise NormswapError(f"{where}: input '{spec.name}' has {bad} NaN or infinite numbers")


def _labels(where: str, labels: Array) -> Array:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        shape = "x".join(map(str, labels.shape))
        raise NormswapError(
            f"{where}: labels must be integers, one per sample; got {labels.dtype.name} {shape}"
        )
    return labels
