"""Constants that half precision changes by more than rounding: epsilons, bounds, weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.graph.rounding import STANDS_FOR_INFINITY, as_half
from normswap.precision.formats import FORMATS, Format


@dataclass(frozen=True)
class ChangedConstant:
    """A constant of a graph that a format does not hold.

    Attributes:
        name: the value's, or that of the attribute behind the reader's first output.
        number: its largest magnitude; of those that only stand for infinity where it has such ones.
        becomes: what the format makes of that: 0 where all of the constant vanishes, infinity, or
            the format's largest number for one that stands for infinity.
        reader: a node that computes with it.
        is_single: whether all of it is that one number, up to its sign.
        value: None for an attribute.
    """

    name: str
    number: float
    becomes: float
    reader: Node
    is_single: bool = True
    value: Value | None = None


def changed_constants(graph: Graph, format: Format) -> Iterator[ChangedConstant]:
    """Every constant that ``format`` changes so, once for each node that reads it, in order.

    What is computed of constants alone is known by its result. The epsilon of a norm that is one
    operator is none: its statistics are float32. An upper bound that becomes infinite is none
    either, since the format has nothing above it.
    """
    fixed: set[Value] = set()  # computed from no input
    for node in graph.nodes:
        if fixed.issuperset(node.dynamic_inputs()):
            fixed.update(() if node.operator.random else node.outputs)
            continue
        for value in dict.fromkeys(node.inputs):
            if value is None or not (value.is_constant or value in fixed) or not _is_number(value):
                continue
            size = np.abs(_array(graph, value))
            size = size[np.isfinite(size)]
            if found := _changed(size, format):
                single = bool(size.min() == size.max())
                yield ChangedConstant(value.name, *found, node, single, value)
        for name, number in node.attributes.items() if not node.operator.normalises else ():
            if isinstance(number, float) and number and not as_half(np.array(number), format.dtype):
                yield ChangedConstant(f"{node.output.name}.{name}", abs(number), 0.0, node)


def _array(graph: Graph, value: Value) -> Array:
    array = graph.constant(value.origin)
    return graph.evaluate([value], {})[0] if array is None else array


def _is_number(value: Value) -> bool:
    return value.dtype is not None and is_floating(value.dtype)


def _changed(size: Array, format: Format) -> tuple[float, float] | None:
    """Of finite magnitudes, the number and what it becomes; None where the format holds them."""
    most = float(size.max()) if size.size else 0.0
    if not most:
        return None
    if most >= STANDS_FOR_INFINITY and most > format.largest:
        weights = size[size < STANDS_FOR_INFINITY]
        beyond = float(weights.max()) if weights.size else 0.0
        if beyond <= format.largest:
            return most, format.largest
        most = beyond
    becomes = float(as_half(np.array(most), format.dtype))
    return None if 0 < becomes < np.inf else (most, becomes)


@dataclass(frozen=True)
class LostConstant:
    """A constant that a format does not hold: an epsilon or a bound that becomes 0, a number beyond
    the largest.

    Attributes:
        name: the graph's; of an attribute that of the result, and its own.
        operator: what reads it; ``module``: the module path of that.
        number: the largest magnitude in it.
        is_single: whether all of it is that number, up to its sign, as an epsilon or a bound is.
        readers: how many operators read it.
        becomes: what ``number`` is in each format that does not hold it: 0, infinity, or the
            largest number of the format where it only stands for infinity.

    Examples:
        >>> [found.name for found in headroom(model, data="images").constants]
    """

    name: str
    operator: str
    module: str
    number: float
    is_single: bool
    readers: int
    becomes: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        finite = {name: n if math.isfinite(n) else None for name, n in self.becomes.items()}
        return {
            "name": self.name,
            "operator": self.operator,
            "module": self.module,
            "number": self.number,
            "is_single": self.is_single,
            "readers": self.readers,
            "becomes": finite,
        }


def lost_constants(graph: Graph) -> list[LostConstant]:
    """The constants that a format changes, each once, in the order of the graph."""
    found: dict[str, dict[str, list[ChangedConstant]]] = {}
    for name, format in FORMATS.items():
        for changed in changed_constants(graph, format):
            found.setdefault(changed.name, {}).setdefault(name, []).append(changed)
    lost = []
    for name, by_format in found.items():
        changes = next(iter(by_format.values()))
        first = changes[0]
        op, scope = first.reader.op, first.reader.scope
        becomes = {format: held[0].becomes for format, held in by_format.items()}
        number = first.number, first.is_single, len(changes)
        lost.append(LostConstant(name, op, scope, *number, becomes))
    return lost
