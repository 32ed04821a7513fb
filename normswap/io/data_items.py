"""Arrays by name from what Python code hands over: arrays, mappings, iterables of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array
from normswap.graph.tensors import to_numpy
from normswap.io.image_input import image_input
from normswap.model import InputSpec, Model

LABELS = "labels"


def named_arrays(item: Any, model: Model) -> dict[str, Array]:
    """A mapping's arrays by its names; anything else is an array for the image input.

    Raises NormswapError for what is no array.
    """
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


def joined_arrays(items: Iterable[Any], model: Model) -> dict[str, Array]:
    """One array per input from an iterable of samples or batches, perhaps in pairs with labels.

    Raises NormswapError for items that are no arrays, or that do not join.
    """
    ranks = {spec.name: len(spec.shape) for spec in model.inputs} | {LABELS: 1}
    parts: dict[str, list[Array]] = {}
    for number, item in enumerate(items):
        labelled = (
            isinstance(item, tuple | list)
            and len(item) == 2
            and isinstance(item[0], np.ndarray | torch.Tensor | Mapping)
        )
        named = named_arrays(item[0], model) if labelled else named_arrays(item, model)
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


def required_image_input(where: str, model: Model) -> InputSpec:
    """The input that takes images. Raises NormswapError, which begins with ``where``, if there is
    none."""
    spec = image_input(model.inputs)
    if spec is None:
        names = ", ".join(spec.name for spec in model.inputs)
        raise NormswapError(f"{where}: {model.name} has no image input; name the arrays: {names}")
    return spec
