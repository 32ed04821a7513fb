"""Calibration and validation data: arrays for some or all of a model's inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np
import safetensors
import torch
from PIL import Image

from normswap.errors import NormswapError, first_line, plain
from normswap.graph.graph import Array, is_floating
from normswap.graph.tensors import to_numpy
from normswap.io.bounds import check_inflation
from normswap.io.glyphs import PREFIX, Glyphs
from normswap.io.images import (
    folder_labels,
    known_preprocessing,
    list_images,
    named_problems,
    opener,
    prepare,
    read_images,
    required_image_input,
    with_folder_preprocessing,
    without_rows,
)
from normswap.io.mapped import chunks, new_array
from normswap.io.preprocessing import Preprocessing
from normswap.model import InputSpec, Model, Progress, check_array

LABELS = "labels"
_IDS, _TYPES = "input_ids", "token_type_ids"
TAKEN_AS_ZEROS = "%s: holds no %s; zeros are taken, as for texts of one sentence"
_MAGIC = {".npy": b"\x93NUMPY", ".npz": b"PK", ".safetensors": b""}
"""Files of arrays by suffix, and how they begin."""
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
        """The data without every ``every``-th sample, and those samples."""
        chosen = np.arange(self.count) % every == every - 1
        return self.part(~chosen), self.part(chosen)

    def part(self, chosen: Any) -> Data:
        """The samples that ``chosen`` selects: a slice, indices or booleans."""
        labels = None if self.labels is None else self.labels[chosen]
        return Data({name: array[chosen] for name, array in self.feeds.items()}, labels)


def load_data(
    source: Any,
    model: Model,
    samples: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Data:
    """Data that ``model`` takes, in its inputs' own dtypes.

    Args:
        source: one of

            * a path to a folder of images (png, jpeg, webp, bmp, ppm, tiff, gif; subfolders too, in
              the order of their paths), which are prepared as ``model.preprocessing`` says. The
              subfolders of a classifier's images may give labels: see ``images.folder_labels``;
            * a path to a ``.npy`` (one array), ``.npz`` or ``.safetensors`` (a mapping);
            * ``glyphs:CLASSES``: pictures of characters, see ``glyphs.py``;
            * an array or torch tensor: for the model's image input (the first floating one of rank
              4, else the first floating one, else its only one);
            * a mapping from input names to arrays, perhaps with ``labels``; any other single name
              stands for the image input;
            * an iterable of any of the last two, or of pairs (item, labels) as a DataLoader gives
              them: arrays of an input's rank are batches and are joined, of one less are samples
              and are stacked.

            Floats are cast to the input's float type and integers to its integer type where they
            fit; uint8 [N, H, W, C] for the image input is prepared as images are. Where
            ``input_ids`` come without ``token_type_ids``, those are zeros, as in transformers.
        model: whose inputs the data is for.
        samples: keeps that many, in order; if there are fewer all are kept, with a warning. Of a
            folder no other image is read.
        seed: of the draw of ``samples``.
        skip_bad: leave images out that cannot be read or used, with a warning that names them.
        progress: ``progress(done, total, what)`` is called while images are read.

    Returns:
        Arrays by input name with the samples along the first axis, and ``labels``, int64 [N] or
        None. Arrays of more than 1 GiB are mapped from a temporary file.

    Raises:
        NormswapError: naming the file, for one that is missing, damaged or holds pickled objects,
            and for a folder without images or with images that cannot be read; images for a model
            whose preprocessing is not known; unknown names; other dtypes or shapes; NaN or
            infinity; inputs or labels of different counts; no samples.

    Examples:
        >>> data = load_data("images/", model, samples=256)
        >>> data = load_data({"pixel_values": images, "labels": labels}, model)
    """
    where = str(source) if isinstance(source, str | Path) else "data"
    if samples is not None and samples < 1:
        raise NormswapError(f"{where}: {samples} samples were asked for; ask for one or more")
    if isinstance(source, str | Path) and Path(source).is_dir():
        bad = _leave_out if skip_bad else _refuse
        return _from_folder(Path(source), model, _Draw(samples, seed), bad, progress)
    arrays = _read(source, model)
    for name, array in default_inputs(arrays, model).items():
        _log.warning(TAKEN_AS_ZEROS, where, name)
        arrays[name] = array
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


# -- reading -------------------------------------------------------------------------------------


def _read(source: Any, model: Model) -> dict[str, Array]:
    """The arrays of the source by name."""
    if isinstance(source, str) and source.startswith(PREFIX):
        source = Glyphs.parse(source)
    if isinstance(source, Glyphs):
        images, classes = source.arrays()
        return {"glyphs": images, LABELS: classes}
    if isinstance(source, str | Path):
        return read_arrays(Path(source))
    if isinstance(source, Data):
        labels = {} if source.labels is None else {LABELS: source.labels}
        return {**source.feeds, **labels}
    if isinstance(source, np.ndarray | torch.Tensor | Mapping):
        return _named_arrays(source, model)
    if isinstance(source, Iterable):
        return _joined_arrays(source, model)
    raise NormswapError(f"data: takes arrays, files or an iterable, not {type(source).__name__}")


def _named_arrays(item: Any, model: Model) -> dict[str, Array]:
    """A mapping's arrays by its names; anything else is an array for the image input."""
    if isinstance(item, Mapping):
        return {str(name): _array(value) for name, value in item.items()}
    return {required_image_input("data", model).name: _array(item)}


def _array(value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        return to_numpy(value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise NormswapError(f"data: is no array: {first_line(error)}") from error
    if array.dtype == object:
        raise NormswapError(f"data: holds {type(value).__name__} where an array belongs")
    return array


def _joined_arrays(items: Iterable[Any], model: Model) -> dict[str, Array]:
    """One array per input from an iterable of samples or batches, perhaps in pairs with labels."""
    ranks = {spec.name: len(spec.shape) for spec in model.inputs} | {LABELS: 1}
    parts: dict[str, list[Array]] = {}
    for number, item in enumerate(items):
        labelled = (
            isinstance(item, tuple | list)
            and len(item) == 2
            and isinstance(item[0], np.ndarray | torch.Tensor | Mapping)
        )
        named = _named_arrays(item[0] if labelled else item, model)
        if labelled:
            named[LABELS] = _array(item[1])
        if number and named.keys() != parts.keys():
            raise NormswapError(
                f"data: item {number} holds {', '.join(named)}, the others {', '.join(parts)}"
            )
        for name, array in named.items():
            sample = array.ndim == ranks.get(name, 0) - 1
            parts.setdefault(name, []).append(array[None] if sample else array)
    joined = {}
    for name, arrays in parts.items():
        try:
            joined[name] = np.concatenate(arrays)
        except ValueError as error:
            raise NormswapError(
                f"data: the arrays for '{name}' do not join: {first_line(error)}"
            ) from error
    return joined


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays in a ``.npy``, ``.npz`` or ``.safetensors`` file by name.

    A ``.npy`` has one, which stays mapped until it is used. Raises NormswapError naming a file
    that is missing, damaged, of another kind or that holds pickled objects.
    """
    suffix = path.suffix.lower()
    if suffix not in _MAGIC:
        raise NormswapError(
            f"{path}: is no data file: give a folder of images, or {', '.join(_MAGIC)}"
        )
    if not path.is_file():
        raise NormswapError(f"{path}: {'is no file' if path.exists() else 'does not exist'}")
    try:
        return _arrays_in(path, suffix)
    except NormswapError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise NormswapError(f"{path}: holds Python objects; save plain arrays") from error
        raise NormswapError(f"{path}: cannot be read: {first_line(error)}") from error


def _arrays_in(path: Path, suffix: str) -> dict[str, Array]:
    if suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: to_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    with path.open("rb") as start:  # numpy reports a file that begins otherwise as a pickle
        if not start.read(8).startswith(_MAGIC[suffix]):
            raise ValueError(f"it is no {path.suffix} file, or damaged")
    if suffix == ".npy":
        return {"array": np.load(path, mmap_mode="r", allow_pickle=False)}
    with np.load(path, allow_pickle=False) as archive:
        members = archive.zip.infolist()
        if any(m.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for m in members):
            raise ValueError("it is packed in a way that numpy never does")
        check_inflation(path, sum(member.file_size for member in members))
        arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of what is no array
            raise ValueError(f"its part {plain(name)} is no array")
    return arrays


def default_inputs(feeds: Mapping[str, Array], model: Model) -> dict[str, Array]:
    """What transformers feeds to a text model where it is not given: ``token_type_ids`` of zeros,
    in the shape of ``input_ids``."""
    specs = {spec.name: spec for spec in model.inputs}
    if _TYPES not in specs or _TYPES in feeds or _IDS not in feeds:
        return {}
    return {_TYPES: np.zeros(feeds[_IDS].shape, specs[_TYPES].dtype)}


# -- images --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """How many samples are kept, None for all, and the seed of which."""

    samples: int | None
    seed: int


def _from_folder(
    folder: Path,
    model: Model,
    draw: _Draw,
    settle: Callable[[str, Sequence[str], Array, dict[int, str]], tuple[Array, Array]],
    progress: Progress | None,
) -> Data:
    """``settle``: the images that are used, and their indices, of all and what is wrong with some;
    or it raises NormswapError."""
    where = str(folder)
    spec = required_image_input(where, model)
    preprocessing = known_preprocessing(where, with_folder_preprocessing(folder, model), spec)
    files = list_images(folder)
    labels = folder_labels(files, model)
    chosen = np.arange(len(files))[_choice(where, len(files), draw.samples, draw.seed)]
    files = [files[index] for index in chosen]
    names = [file.as_posix() for file in files]
    read = opener(folder, files)
    images, bad = read_images(where, len(files), read, preprocessing, spec, progress)
    if images is None or len(bad) == len(files):
        raise NormswapError(f"{where}: {named_problems(names, bad)}; give other images")
    if bad:
        images, kept = settle(where, names, images, bad)
        chosen = chosen[kept]
    _check_finite(where, spec, images)
    return Data({spec.name: images}, None if labels is None else labels[chosen])


def _refuse(where: str, names: Sequence[str], images: Array, bad: dict[int, str]) -> NoReturn:
    raise NormswapError(
        f"{where}: {named_problems(names, bad)}; "
        "--skip-bad leaves them out (skip_bad= of load_data in Python)"
    )


def _leave_out(
    where: str, names: Sequence[str], images: Array, bad: dict[int, str]
) -> tuple[Array, Array]:
    _log.warning("%s: %s; they are left out", where, named_problems(names, bad))
    return without_rows(images, bad)


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


# -- checking ------------------------------------------------------------------------------------


def _count(where: str, arrays: Mapping[str, Array], labels: Array | None) -> int:
    every = {**arrays, **({} if labels is None else {LABELS: labels})}
    counts = {name: len(array) if array.ndim else 0 for name, array in every.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
        raise NormswapError(f"{where}: the numbers of samples differ: {listed}")
    count = next(iter(counts.values()))
    if not count:
        raise NormswapError(f"{where}: holds no samples")
    return count


def _choice(where: str, count: int, samples: int | None, seed: int) -> Any:
    """What selects the samples out of ``count``: their indices, or a slice of all."""
    if samples is not None and samples > count:
        _log.warning(
            "%s: holds %d samples, fewer than the %d asked for; all are used", where, count, samples
        )
    if samples is None or samples >= count:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(count, samples, replace=False))


def _checked(where: str, spec: InputSpec, array: Array, chosen: Any) -> Array:
    """The chosen samples in the input's dtype; the first axis is that of the samples."""
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
