"""Images for a model: the files and labels of a folder, and images as the array that it takes."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from normswap.errors import NormswapError, first_line, plain
from normswap.graph.graph import Array, is_floating
from normswap.io.bounds import check_regular
from normswap.io.mapped import new_array
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.preprocessing_configs import from_huggingface, processor_config
from normswap.model import InputSpec, Model, Progress

SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
# Other formats of Pillow run programs (EPS) or hold no pictures.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SPLITS = ("test", "train", "training", "val", "valid", "validation")
_LARGE = 1 << 24  # pixels
_one_at_a_time = threading.Lock()
_LISTED = 5  # names in a message
_WORKERS = 8  # Pillow decodes and resizes without Python's lock
_log = logging.getLogger(__name__)


def image_input(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that takes images: the first floating one of rank 4, else the first floating one,
    else the only one."""
    floating = [spec for spec in inputs if is_floating(spec.dtype)]
    images = [spec for spec in floating if len(spec.shape) == 4]
    only = list(inputs) if len(inputs) == 1 else []
    return next(iter([*images, *floating, *only]), None)


def required_image_input(where: str, model: Model) -> InputSpec:
    """The input that takes images. Raises NormswapError, which begins with ``where``, if there is
    none."""
    spec = image_input(model.inputs)
    if spec is None:
        names = ", ".join(spec.name for spec in model.inputs)
        raise NormswapError(f"{where}: {model.name} has no image input; name the arrays: {names}")
    return spec


# -- folders -------------------------------------------------------------------------------------


def list_images(folder: Path) -> list[Path]:
    """The images in ``folder`` and its subfolders, relative to it, in the order of their paths.

    A file is an image by its suffix; names that begin with a dot are left out. Links are followed.
    Raises NormswapError for a folder without images or one that cannot be read.
    """
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    others = 0
    for root, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder already visited
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        others += len(names) - len(images)
        files += [(Path(root) / name).relative_to(folder) for name in images]
    if not files:
        problem = f"; its {others} files are of other kinds" if others else ", it is empty"
        raise NormswapError(f"{folder}: holds no images{problem}; give {', '.join(SUFFIXES)}")
    if others:
        _log.info("%s: %d files that are no images are left out", folder, others)
    return sorted(files, key=lambda path: path.parts)


def opener(folder: Path, files: Sequence[Path]) -> Callable[[int], Image.Image]:
    """A function that opens the image at an index of ``files``."""

    def opened(number: int) -> Image.Image:
        path = folder / files[number]
        check_regular(path)
        return Image.open(path, formats=_FORMATS)

    return opened


def folder_labels(files: Sequence[Path], model: Model) -> Array | None:
    """The labels int64 [N] that the subfolders of ``files`` give for a classifier, or None.

    For a model with one input and one output of classes, and images that all lie one folder deep:
    subfolders that are called like the model's ``classes`` stand for those; subfolders named
    0, 1, 2... are the labels themselves; others are numbered in the order of their names, as
    torchvision's ImageFolder does, if there are as many as classes.
    """
    classes = _classes(model)
    if classes is None or any(len(file.parts) != 2 for file in files):
        return None
    names = sorted({file.parts[0] for file in files})
    positions = {name: number for number, name in enumerate(model.classes[:classes])}
    if all(name in positions for name in names):
        numbers, known = {name: positions[name] for name in names}, True
    elif all(name.isascii() and name.isdecimal() for name in names):
        numbers = {name: int(name) for name in names}
        known = len(set(numbers.values())) == len(names) and max(numbers.values()) < classes
    else:
        numbers = {name: number for number, name in enumerate(names)}
        known = len(names) == classes and not any(name.lower() in _SPLITS for name in names)
    if not known:
        _log.info("no labels: %d subfolders for %d classes of %s", len(names), classes, model.name)
        return None
    first, last = names[0], names[-1]
    _log.info(
        "labels are taken from %d subfolders, from %s as %d to %s as %d",
        len(names), first, numbers[first], last, numbers[last],
    )  # fmt: skip
    return np.array([numbers[file.parts[0]] for file in files], np.int64)


def _classes(model: Model) -> int | None:
    """The columns of a classifier's output; None for a model that is no classifier."""
    named = zip(model.output_names, model.graph.outputs, strict=True)
    ranked = [(name, value.shape) for name, value in named if value.rank == 2]
    logits = [shape for name, shape in ranked if name.startswith("logits")]
    only = [shape for _, shape in ranked] if len(ranked) == 1 else []
    shape = next(iter(logits or only), None)
    return shape[1] if shape is not None and len(model.inputs) == 1 else None


def _unreadable(error: OSError) -> None:
    raise NormswapError(f"{error.filename}: cannot be read ({error.strerror})") from error


def adjusted(
    model: Model,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    resample: str | None = None,
) -> Model:
    """The model with parts of its preprocessing as given, the others as they are known.

    ``mean``, ``std``: of pixels from 0 to 1, per channel or one for all. ``size``: of two numbers,
    the height and width that images are resized to; of one, the length of their shorter side, and
    then the centre that the model takes is cut out. ``resample``: the name of the filter.
    Raises NormswapError where nothing is known and mean, std or the size are missing, and for
    values without sense.
    """
    if (mean, std, size, resample) == (None,) * 4:
        return model
    spec = required_image_input(model.name, model)
    sides = [side for side in spec.shape[2:] if isinstance(side, int)]
    fixed = (sides[0], sides[1]) if len(spec.shape) == 4 and len(sides) == 2 else None
    known = model.preprocessing
    if not isinstance(known, Preprocessing):
        if mean is None or std is None or not (size or fixed):
            needed = "--mean and --std" if size or fixed else "--mean, --std and --size"
            raise NormswapError(
                f"{model.name}: nothing is known of its preprocessing; give {needed}"
            )
        mode = "L" if spec.shape[1] == 1 else "RGB"
        unit = (1.0,) * (1 if mode == "L" else 3)
        how: dict[str, Any] = {"resize": "shortest", "size": fixed, "crop": fixed} if fixed else {}
        known = Preprocessing(mode, unit, unit, margins="torchvision", **how)
    changes: dict[str, Any] = {}
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            changes[name] = tuple(values) * (known.channels if len(values) == 1 else 1)
    if size is not None and len(size) == 2:
        changes |= {"resize": "squash", "size": tuple(size), "crop": None}
    elif size is not None:
        square = (size[0], size[0])
        changes |= {"resize": "shortest", "size": square, "crop": fixed or square}
    if mean is not None or std is not None:
        changes["scale"] = 1 / 255
    if resample is not None:
        changes["resample"] = resample
    return replace(model, preprocessing=replace(known, **changes))


# -- arrays --------------------------------------------------------------------------------------


def folder_preprocessing(folder: Path, model: Model) -> Preprocessing | Unsupported | None:
    """What a ``preprocessor_config.json`` in a folder says of the model's images; None without one.
    Never raises: a damaged one is Unsupported."""
    spec = image_input(model.inputs)
    channels = spec.shape[1] if spec is not None and len(spec.shape) == 4 else None
    try:
        config = processor_config(folder)
    except NormswapError as error:
        return Unsupported(str(error))
    if config is None:
        return None
    return from_huggingface(config, channels if isinstance(channels, int) else None)


def with_folder_preprocessing(folder: Path, model: Model) -> Model:
    """The model with what the folder of its images says of its preprocessing, if nothing else
    does."""
    if model.preprocessing is not None:
        return model
    return replace(model, preprocessing=folder_preprocessing(folder, model))


def known_preprocessing(where: str, model: Model, spec: InputSpec) -> Preprocessing:
    """The model's preprocessing, which fits its image input ``spec``.

    Raises NormswapError, which begins with ``where``, if none is known, normswap cannot follow it,
    or its results are not what the input takes.
    """
    known = model.preprocessing
    if not isinstance(known, Preprocessing):
        problem = (
            f"normswap cannot follow that of {model.name} ({known.reason})"
            if isinstance(known, Unsupported)
            else f"none is known for {model.name}"
        )
        raise NormswapError(
            f"{where}: images need the model's preprocessing, and {problem}; give --mean and --std "
            "(preprocessing= of load in Python), put a preprocessor_config.json beside the model, "
            "or give preprocessed arrays (.npy, .npz, .safetensors)"
        )
    if not is_floating(spec.dtype) or len(spec.shape) != 4:
        raise NormswapError(
            f"{where}: input '{spec.name}' of {model.name} takes {spec.dtype.name} "
            f"{_sizes(spec.shape)}, no preprocessed images; give arrays"
        )
    if not _fits(spec, (known.channels, *(known.output_size or spec.shape[2:]))):
        given = _sizes((known.channels, *(known.output_size or ("H", "W"))))
        raise NormswapError(
            f"{where}: the preprocessing of {model.name} gives {given}, but its input "
            f"'{spec.name}' takes {_sizes(spec.shape[1:])}; give preprocessed arrays"
        )
    return known


def prepare(
    where: str,
    names: Sequence[str],
    open_image: Callable[[int], Image.Image],
    preprocessing: Preprocessing,
    spec: InputSpec,
    progress: Progress | None = None,
) -> Array:
    """The images as an array of the dtype of ``spec`` [N, channels, height, width].

    ``names``: the name of each image in errors. ``open_image``: opens the image at an index; it
    may be called from several threads, and each image is closed again. ``progress``: see
    ``normswap.model.Progress``.
    Raises NormswapError, which begins with ``where``, for images that cannot be used: see
    ``read_images``.
    """
    array, bad = read_images(where, len(names), open_image, preprocessing, spec, progress)
    if bad or array is None:
        raise NormswapError(f"{where}: {named_problems(names, bad)}")
    return array


def named_problems(names: Sequence[str], bad: Mapping[int, str]) -> str:
    """How many of the images called ``names`` cannot be used, and which, as far as that is short:
    ``bad`` has what is wrong with one by its index."""
    listed = [f"{plain(names[index])} ({bad[index]})" for index in list(bad)[:_LISTED]]
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    return f"{len(bad)} of {len(names)} images cannot be used: {', '.join(listed)}{more}"


def without_rows(array: Array, rows: Collection[int]) -> tuple[Array, Array]:
    """The array without some of its rows, which are moved together in place, and the indices of
    those that stay."""
    kept = np.delete(np.arange(len(array)), list(rows))
    for target, index in enumerate(kept):
        if target != index:
            array[target] = array[index]
    return array[: len(kept)], kept


def read_images(
    where: str,
    total: int,
    open_image: Callable[[int], Image.Image],
    preprocessing: Preprocessing,
    spec: InputSpec,
    progress: Progress | None = None,
) -> tuple[Array | None, dict[int, str]]:
    """As ``prepare``, but where images cannot be used: what is wrong with each of them by its
    index, and the array with anything in their rows (None where all are bad).

    They are unreadable, truncated, of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, of more than
    8 bits, or of another size than the model takes.
    """
    report = progress or (lambda *_: None)
    problems: dict[int, str] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(_workers()) as pool:
        # Set for all threads: an image so large that Pillow warns is refused.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        size = preprocessing.output_size or _first_size(total, open_image, preprocessing)
        array: Array | None = None
        if size is not None:
            array = new_array(where, (total, preprocessing.channels, *size), spec.dtype)

        def store(number: int) -> str | None:
            return _store(array, number, open_image, preprocessing, spec)

        try:
            report(0, total, "reading images")
            for number, problem in enumerate(pool.map(store, range(total))):
                report(number + 1, total, "reading images")
                if problem is not None:
                    problems[number] = problem
        except BaseException:  # an interrupt does not wait for the remaining images
            pool.shutdown(cancel_futures=True)
            raise
    return array, problems


def _store(
    array: Array | None,
    number: int,
    open_image: Callable[[int], Image.Image],
    preprocessing: Preprocessing,
    spec: InputSpec,
) -> str | None:
    """Puts the image at an index, prepared, into the array; returns what is wrong with it."""
    try:
        with open_image(number) as image:
            # A small file may hold a large image: not several of them at a time.
            large = image.width * image.height > _LARGE
            with _one_at_a_time if large else contextlib.nullcontext():
                pixels = preprocessing.pixels(image)
    except UnidentifiedImageError:
        return "it is no image, or damaged"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    except Exception as error:  # a damaged image can raise nearly anything
        return first_line(error)
    shape = (preprocessing.channels, *pixels.shape[:2])
    if array is None or shape != array.shape[1:] or not _fits(spec, shape):
        wanted = spec.shape if array is None else array.shape
        return f"it becomes {_sizes(shape)}, and {_sizes(wanted[1:])} is wanted"
    with np.errstate(over="ignore"):
        array[number] = preprocessing.normalised(pixels)
    return None


def _first_size(
    total: int, open_image: Callable[[int], Image.Image], preprocessing: Preprocessing
) -> tuple[int, int] | None:
    """The size of the first image that can be used, where the preprocessing leaves it to the
    images."""
    for number in range(total):
        # What is wrong with an image is reported when its turn comes.
        with contextlib.suppress(Exception), open_image(number) as image:
            height, width, _ = preprocessing.pixels(image).shape
            return height, width
    return None


def _fits(spec: InputSpec, sizes: Sequence[int | str]) -> bool:
    pairs = zip(spec.shape[1:], sizes, strict=True)
    return all(want == have for want, have in pairs if isinstance(want, int))


def _sizes(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape))


def _workers() -> int:
    return min(_WORKERS, os.cpu_count() or 1)
