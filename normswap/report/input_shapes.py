"""Sizes of inputs that users ask for: parsing them, and arrays of those sizes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array, Value, is_floating
from normswap.model import InputSpec, Model, check_array

_SIZES = re.compile(r"[1-9]\d*(x[1-9]\d*)*")
_IMAGE_RANK = 4


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """The name ('' if there is none) and the sizes in a text like ``1x3x224x224`` or ``text=8x77``.

    Raises NormswapError for a text that is no shape.
    """
    name, _, sizes = text.rpartition("=")
    if not _SIZES.fullmatch(sizes) or text.startswith("="):
        raise NormswapError(
            f"--input-shape: '{text}' is no shape; write sizes like 1x3x224x224, or "
            "NAME=1x3x224x224"
        )
    return name, tuple(int(size) for size in sizes.split("x"))


def named_shapes(
    model: Model, given: Iterable[tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, from what ``parse_input_shape`` makes of several texts.

    A shape without a name is that of the only input, or of the only image (floats of rank 4).
    Raises NormswapError where that is none or several, and for an input that is given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in given:
        name = name or _unnamed(model, shape)
        if name in shapes:
            raise NormswapError(f"--input-shape: '{name}' is given twice")
        shapes[name] = shape
    return shapes


def sized(model: Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """An array for every input of the model: zeros of the ``shapes``, examples for the others.

    A size that the model gives a name goes to the other inputs with that name. Raises NormswapError
    for a name that is no input and a shape that the input does not take.
    """
    specs = {spec.name: spec for spec in model.inputs}
    arrays: dict[str, Array] = {}
    known: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise NormswapError(f"{model.name}: '{name}' is no input; it takes {', '.join(specs)}")
        arrays[name] = _zeros(model, name, shape, specs[name])
        for size, given in zip(specs[name].shape, shape, strict=True):
            if isinstance(size, str):
                known.setdefault(size, given)
    return {
        name: arrays[name] if name in arrays else _resized(spec, model.examples[name], known)
        for name, spec in specs.items()
    }


def shapes_at(
    model: Model, values: Sequence[Value], arrays: Mapping[str, Array]
) -> list[tuple[int, ...]]:
    """The shapes of ``values`` when the model runs once on ``arrays``, one for every input.

    Raises NormswapError if it does not run on them.
    """
    feeds = {model.graph.value(name): array for name, array in arrays.items()}
    wanted = list(dict.fromkeys(values))
    try:
        found = model.graph.evaluate(wanted, feeds)
    except Exception as error:  # exceptions have no common type: the sizes do not fit each other
        sizes = ", ".join(f"{name}={sizes_text(array.shape)}" for name, array in arrays.items())
        raise NormswapError(
            f"{model.name}: it does not run on {sizes} ({first_line(error)})"
        ) from error
    shapes = {v: tuple(array.shape) for v, array in zip(wanted, found, strict=True)}
    return [shapes[value] for value in values]


def sizes_text(sizes: Sequence[int]) -> str:
    """As 1x3x224x224."""
    return "x".join(map(str, sizes))


def _unnamed(model: Model, shape: Sequence[int]) -> str:
    candidates = [spec.name for spec in model.inputs]
    if len(candidates) > 1:
        images = [s for s in model.inputs if len(s.shape) == _IMAGE_RANK and is_floating(s.dtype)]
        candidates = [spec.name for spec in images]
    if len(candidates) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        sizes = sizes_text(shape)
        raise NormswapError(
            f"--input-shape: which input is {sizes} for? {model.name} takes {names}; write "
            f"NAME={sizes}"
        )
    return candidates[0]


def _zeros(model: Model, name: str, shape: Sequence[int], spec: InputSpec) -> Array:
    """Raises NormswapError for a shape that ``spec`` does not allow or that no memory holds."""
    # Checked without its memory first: a wrong shape may be a large one.
    if all(size > 0 for size in shape):
        check_array(model.name, spec, np.broadcast_to(np.zeros((), spec.dtype), tuple(shape)))
        with contextlib.suppress(MemoryError, ValueError):
            return np.zeros(tuple(shape), spec.dtype)
    raise NormswapError(f"{model.name}: input '{name}' cannot have the size {sizes_text(shape)}")


def _resized(spec: InputSpec, example: Array, known: Mapping[str, int]) -> Array:
    """The example, or zeros where another input has given one of its sizes."""
    sizes = zip(spec.shape, example.shape, strict=True)
    shape = tuple(known.get(size, own) if isinstance(size, str) else own for size, own in sizes)
    return example if shape == example.shape else np.zeros(shape, spec.dtype)
