"""A model next to itself: its inputs and biases off by rounding, each time in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Value, is_floating
from normswap.model import Model
from normswap.parity.bounds import ulp

_SMALL = 2**16  # elements of a constant that is varied


class Neighbours:
    """``model`` with inputs and small constants off by an ulp, each time in another way.

    Every number of the floating inputs and of the constants of 2 to 65,536 elements (biases,
    gammas, position embeddings: there are some in every block) is off by an ulp, up or down at
    random; zeros are exact. What comes out differs from the model's ``values`` by as much as
    rounding may. Constants that give a result its shape stay as they are.
    Raises NormswapError where the runtime refuses to take constants as inputs.
    """

    def __init__(self, model: Model, values: Sequence[Value]) -> None:
        graph = model.graph
        self._names = [spec.name for spec in model.inputs]
        constants = [value for value in graph.values() if _is_small_constant(value)]
        self._constants = _Packed([np.asarray(graph.constant(value)) for value in constants])
        inputs = [graph.value(name) for name in self._names]
        distinct = list(dict.fromkeys(values))
        self._places = [distinct.index(value) for value in values]
        self._run = graph.slice([*inputs, *constants], distinct)

    def run(self, feeds: Mapping[str, Array], draw: int) -> list[Array]:
        """The values in order, in the graph's own dtypes; another ``draw``, other neighbours.

        Raises NormswapError for one that cannot run: sizes may be computed from its numbers.
        """
        rng = np.random.default_rng(draw)
        inputs = [one_ulp_off(rng, feeds[name]) for name in self._names]
        outputs = self._run([*inputs, *self._constants.one_ulp_off(rng)])
        return [np.asarray(outputs[place]) for place in self._places]


class _Packed:
    """Arrays that are varied together: a model has hundreds of small ones."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._flat: dict[np.dtype[Any], Array] = {}
        for dtype in dict.fromkeys(array.dtype for array in arrays):  # in an order of theirs
            same = [array.reshape(-1) for array in arrays if array.dtype == dtype]
            self._flat[dtype] = np.concatenate(same)

    def one_ulp_off(self, rng: np.random.Generator) -> list[Array]:
        varied = {dtype: one_ulp_off(rng, flat) for dtype, flat in self._flat.items()}
        places = dict.fromkeys(varied, 0)
        found = []
        for array in self._arrays:
            start = places[array.dtype]
            places[array.dtype] += array.size
            found.append(varied[array.dtype][start : start + array.size].reshape(array.shape))
        return found


def _is_small_constant(value: Value) -> bool:
    if not value.is_constant or value.producer is not None or not value.uses:
        return False
    if value.dtype is None or not is_floating(value.dtype) or value.shape is None:
        return False
    if any(node.operator.takes_sizes and index for node, index in value.uses):
        return False
    return 1 < math.prod(value.shape) <= _SMALL


def one_ulp_off(rng: np.random.Generator, array: Array) -> Array:
    """Every number of a floating array but zeros off by an ulp (``ulp``), up or down; others
    as they are."""
    if not is_floating(array.dtype):
        return array
    wide = array.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        away = np.copysign(ulp(array.dtype, np.abs(wide)), wide) * rng.choice(
            [-1.0, 1.0], wide.shape
        )
        moved = np.where(wide == 0, wide, wide + away).astype(array.dtype)
    return np.where(np.isfinite(moved), moved, array)
