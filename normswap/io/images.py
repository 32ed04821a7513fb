"""Images, wherever they come from, as the array that a model takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from normswap.errors import NormswapError, first_line
from normswap.graph.arrays import is_floating
from normswap.graph.graph import Array
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.scratch import new_array
from normswap.model import InputSpec, Model, Progress

_WORKERS = 8  # Pillow decodes and resizes without Python's lock


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
            f"{where}: images need the model's preprocessing, and {problem}; give preprocessed "
            "arrays (.npy, .npz, .safetensors) or put a preprocessor_config.json beside the model"
        )
    if not is_floating(spec.dtype) or len(spec.shape) != 4:
        wanted = "x".join(map(str, spec.shape))
        raise NormswapError(
            f"{where}: input '{spec.name}' of {model.name} takes {spec.dtype.name} {wanted}, no "
            "preprocessed images; give arrays"
        )
    if not _fits(spec, (known.channels, *(known.output_size or spec.shape[2:]))):
        given = "x".join(map(str, (known.channels, *(known.output_size or ("H", "W")))))
        wanted = "x".join(map(str, spec.shape[1:]))
        raise NormswapError(
            f"{where}: the preprocessing of {model.name} gives {given}, but its input "
            f"'{spec.name}' takes {wanted}; give preprocessed arrays"
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

    ``names``: what errors call each image. ``open_image``: opens the one of a number; it may be
    called from several threads, and each image is closed again. ``progress``: see
    ``normswap.progress``.
    Raises NormswapError, which begins with ``where``, tells how many images cannot be used and
    names the first: unreadable, truncated, of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, of
    more than 8 bits, or of another size than the model takes.
    """
    total = len(names)
    tell = progress or (lambda *_: None)
    problems: list[tuple[str, str]] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(_workers()) as pool:
        # Set for all threads: an image so large that Pillow warns is refused.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        task = _Task(where, open_image, preprocessing, spec, total)
        try:
            tell(0, total, "reading images")
            for number, problem in enumerate(pool.map(task, range(total))):
                tell(number + 1, total, "reading images")
                if problem is not None:
                    problems.append((names[number], problem))
        except BaseException:  # an interrupt does not wait for the images that are left
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        name, problem = problems[0]
        raise NormswapError(
            f"{where}: {len(problems)} of {total} images cannot be used, first {name}: {problem}"
        )
    assert task.array is not None
    return task.array


class _Task:
    """Prepares the image of a number and puts it into the array, or returns what is wrong."""

    def __init__(
        self,
        where: str,
        open_image: Callable[[int], Image.Image],
        preprocessing: Preprocessing,
        spec: InputSpec,
        total: int,
    ) -> None:
        self._open = open_image
        self._preprocessing = preprocessing
        self._spec = spec
        size = preprocessing.output_size or self._first_size()
        self.array: Array | None = None
        if size is not None:
            self.array = new_array(where, (total, preprocessing.channels, *size), spec.dtype)

    def __call__(self, number: int) -> str | None:
        try:
            with self._open(number) as image:
                pixels = self._preprocessing.pixels(image)
        except UnidentifiedImageError:
            return "it is no image, or damaged"
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
        except Exception as error:  # a damaged image can raise nearly anything
            return first_line(error)
        found = (self._preprocessing.channels, *pixels.shape[:2])
        if self.array is None or found != self.array.shape[1:] or not _fits(self._spec, found):
            wanted = self._spec.shape if self.array is None else self.array.shape
            told = "x".join(map(str, wanted[1:]))
            return f"it becomes {'x'.join(map(str, found))}, and {told} is wanted"
        with np.errstate(over="ignore"):
            self.array[number] = self._preprocessing.normalised(pixels)
        return None

    def _first_size(self) -> tuple[int, int] | None:
        """The size of the first image, where the preprocessing leaves it to the images."""
        try:
            with self._open(0) as image:
                height, width, _ = self._preprocessing.pixels(image).shape
        except Exception:  # told when its turn comes
            return None
        return height, width


def _fits(spec: InputSpec, sizes: Sequence[int | str]) -> bool:
    pairs = zip(spec.shape[1:], sizes, strict=True)
    return all(want == have for want, have in pairs if isinstance(want, int))


def _workers() -> int:
    return min(_WORKERS, os.cpu_count() or 1)
