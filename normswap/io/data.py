"""Calibration and validation data: arrays for some or all of a model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from normswap.errors import NormswapError
from normswap.graph.arrays import is_floating, to_numpy
from normswap.graph.graph import Array
from normswap.io.messages import first_line
from normswap.model import InputSpec, Model, check_array

_LABELS = "labels"


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


def load_data(source: Any, model: Model, samples: int | None = None, seed: int = 0) -> Data:
    """Data that ``model`` takes, in its inputs' own dtypes.

    ``source`` is one of

    * an array or torch tensor: for the model's image input (the first floating one of rank 4, else
      the first floating one, else its only one);
    * a mapping from input names to arrays, perhaps with ``labels``; any other single name stands
      for the image input;
    * a path to a ``.npy`` (one array), ``.npz`` or ``.safetensors`` (a mapping);
    * an iterable of any of the first two, or of pairs (item, labels) as a DataLoader gives them:
      arrays of an input's rank are batches and are joined, of one less are samples and are stacked.

    ``samples``: keeps that many, drawn at random by ``seed`` and kept in order. Floats are cast to
    the input's float type and integers to its integer type where they fit.

    Raises NormswapError naming the file for a file that is missing, damaged or holds pickled
    objects; unknown names; other dtypes or shapes; NaN or infinity; inputs or labels of different
    counts; no samples.
    """
    where, arrays = _read(source, model)
    if samples is not None and samples < 1:
        raise NormswapError(f"{where}: {samples} samples were asked for; ask for one or more")
    specs = {spec.name: spec for spec in model.inputs}
    labels = arrays.pop(_LABELS, None) if _LABELS not in specs else None
    if len(arrays) == 1 and not arrays.keys() & specs.keys():
        arrays = {_image_input(where, model).name: next(iter(arrays.values()))}
    if unknown := sorted(arrays.keys() - specs.keys()):
        raise NormswapError(
            f"{where}: '{unknown[0]}' is not an input of {model.name}; it takes {', '.join(specs)}"
        )
    if not arrays:
        raise NormswapError(f"{where}: holds no array for any of {', '.join(specs)}")
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    counts |= {} if labels is None else {_LABELS: len(labels) if labels.ndim else 0}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
        raise NormswapError(f"{where}: the numbers of samples differ: {told}")
    count = next(iter(counts.values()))
    if not count:
        raise NormswapError(f"{where}: holds no samples")
    chosen: Any = slice(None)
    if samples is not None and samples < count:
        chosen = np.sort(np.random.default_rng(seed).choice(count, samples, replace=False))
    feeds = {n: _checked(where, specs[n], np.asarray(a[chosen])) for n, a in arrays.items()}
    return Data(feeds, None if labels is None else _labels(where, labels[chosen]))


def _read(source: Any, model: Model) -> tuple[str, dict[str, Array]]:
    """What errors call the source, and its arrays by name."""
    if isinstance(source, str | Path):
        path = Path(source)
        return str(source), _read_file(path)
    if isinstance(source, Data):
        labels = {} if source.labels is None else {_LABELS: source.labels}
        return "data", {**source.feeds, **labels}
    if isinstance(source, np.ndarray | torch.Tensor | Mapping):
        return "data", _named(source, model)
    if isinstance(source, Iterable):
        return "data", _joined(source, model)
    raise NormswapError(f"data: takes arrays, files or an iterable, not {type(source).__name__}")


def _read_file(path: Path) -> dict[str, Array]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise NormswapError(f"{path}: is no data file: give {', '.join(_READERS)}")
    if not path.is_file():
        raise NormswapError(f"{path}: {'is no file' if path.exists() else 'does not exist'}")
    try:
        return reader(path)
    except Exception as error:  # a damaged file can raise nearly anything
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise NormswapError(f"{path}: holds Python objects; save plain arrays") from error
        raise NormswapError(f"{path}: cannot be read: {first_line(error)}") from error


def _read_npy(path: Path) -> dict[str, Array]:
    _check_magic(path, b"\x93NUMPY")
    return {"array": np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, Array]:
    _check_magic(path, b"PK")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check_magic(path: Path, magic: bytes) -> None:
    """numpy takes a file that begins otherwise for a pickle, and says so."""
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise ValueError(f"it is no {path.suffix} file, or damaged")


def _read_safetensors(path: Path) -> dict[str, Array]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: to_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


_READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _named(item: Any, model: Model) -> dict[str, Array]:
    if isinstance(item, Mapping):
        return {str(name): _array(value) for name, value in item.items()}
    return {_image_input("data", model).name: _array(item)}


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


def _joined(items: Iterable[Any], model: Model) -> dict[str, Array]:
    """One array per input from an iterable of samples or batches."""
    ranks = {spec.name: len(spec.shape) for spec in model.inputs} | {_LABELS: 1}
    parts: dict[str, list[Array]] = {}
    for number, item in enumerate(items):
        labelled = (
            isinstance(item, tuple | list)
            and len(item) == 2
            and isinstance(item[0], np.ndarray | torch.Tensor | Mapping)
        )
        named = _named(item[0], model) if labelled else _named(item, model)
        if labelled:
            named[_LABELS] = _array(item[1])
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


def _image_input(where: str, model: Model) -> InputSpec:
    floating = [spec for spec in model.inputs if is_floating(spec.dtype)]
    images = [spec for spec in floating if len(spec.shape) == 4]
    only = list(model.inputs) if len(model.inputs) == 1 else []
    if chosen := [*images, *floating, *only]:
        return chosen[0]
    names = ", ".join(spec.name for spec in model.inputs)
    raise NormswapError(f"{where}: {model.name} has no image input; name the arrays: {names}")


def _checked(where: str, spec: InputSpec, array: Array) -> Array:
    """The array in the input's dtype; the first axis is the samples'."""
    cast = _cast(spec, array)
    if cast is None and array.dtype == np.uint8 and is_floating(spec.dtype):
        raise NormswapError(
            f"{where}: input '{spec.name}' takes {spec.dtype.name}, got uint8: scale the pixels "
            "and apply the model's mean and standard deviation first"
        )
    if cast is None:
        cast = array  # check_array says what is wrong
    check_array(where, replace(spec, shape=("N", *spec.shape[1:])), cast)
    if is_floating(spec.dtype) and (bad := int(np.count_nonzero(~np.isfinite(cast)))):
        raise NormswapError(f"{where}: input '{spec.name}' has {bad} NaN or infinite numbers")
    return cast


def _cast(spec: InputSpec, array: Array) -> Array | None:
    """The array in the input's dtype; None for another kind of numbers or integers too large."""
    if array.dtype == spec.dtype:
        return np.ascontiguousarray(array)
    if is_floating(array.dtype) and is_floating(spec.dtype):
        with np.errstate(over="ignore"):
            return array.astype(spec.dtype)
    integers = array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)
    if integers and np.issubdtype(spec.dtype, np.integer):
        cast = array.astype(spec.dtype)
        return cast if np.array_equal(cast, array) else None
    return None


def _labels(where: str, labels: Array) -> Array:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        shape = "x".join(map(str, labels.shape))
        raise NormswapError(
            f"{where}: labels must be integers, one per sample; got {labels.dtype.name} {shape}"
        )
    return labels
