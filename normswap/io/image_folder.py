"""Folders of images: which files count, and what labels their subfolders give."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import Model

SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
# Others of Pillow's formats run programs (EPS) or are no pictures.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SPLITS = ("test", "train", "training", "val", "valid", "validation")
_log = logging.getLogger(__name__)


def list_images(folder: Path) -> list[Path]:
    """The images in ``folder`` and its subfolders, relative to it, in the order of their paths.

    Files count by suffix; others and those that begin with a dot are left out. Links are followed.
    Raises NormswapError for a folder without images or one that cannot be read.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    others = 0
    for root, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link back to where we have been
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        others += len(names) - len(images)
        found += [(Path(root) / name).relative_to(folder) for name in images]
    if not found:
        told = f"; its {others} files are of other kinds" if others else ", it is empty"
        raise NormswapError(f"{folder}: holds no images{told}; give {', '.join(SUFFIXES)}")
    if others:
        _log.info("%s: %d files that are no images are left out", folder, others)
    return sorted(found, key=lambda path: path.parts)


def opener(folder: Path, files: Sequence[Path]) -> Callable[[int], Image.Image]:
    """A function that opens the image of a number."""
    return lambda number: Image.open(folder / files[number], formats=_FORMATS)


def folder_labels(files: Sequence[Path], model: Model) -> Array | None:
    """The labels int64 [N] that the subfolders of ``files`` give for a classifier, or None.

    For a model with one input and one output of classes, and images that all lie one folder deep:
    subfolders that are called 0, 1, 2... are the labels themselves; others are numbered in the
    order of their names, as torchvision's ImageFolder does, if there are as many as classes.
    """
    classes = _classes(model)
    if classes is None or any(len(file.parts) != 2 for file in files):
        return None
    names = sorted({file.parts[0] for file in files})
    if all(name.isascii() and name.isdecimal() for name in names):
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
    called = [shape for name, shape in ranked if name.startswith("logits")]
    only = [shape for _, shape in ranked] if len(ranked) == 1 else []
    shape = next(iter(called or only), None)
    return shape[1] if shape is not None and len(model.inputs) == 1 else None


def _unreadable(error: OSError) -> None:
    raise NormswapError(f"{error.filename}: cannot be read ({error.strerror})") from error
