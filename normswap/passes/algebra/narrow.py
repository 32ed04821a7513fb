"""What a narrower type holds where a map crosses a Cast.

y = A x + t between a float32 and a float16 value may be absorbed on the other side of the Cast;
then float16 has to hold x where it held y, or y where it held x, and what float32 held may overflow
or vanish there. So a map crosses into a narrower type only if the model has what then lies there in
such a type already, or if the pass knows a bound for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from normswap.graph.graph import Value, is_floating
from normswap.passes.algebra.channel_map import ChannelMap

Dtype = np.dtype[Any]
Holds = Callable[[Dtype], bool]
"""Whether a value fits a floating dtype."""


def nothing_more(dtype: Dtype) -> bool:
    """Of a value of which nothing is known but its own dtype."""
    return False


def anything(dtype: Dtype) -> bool:
    """Of a value whose elements are around 1, such as those of a norm without its affine map."""
    return True


def crosses(change: ChannelMap, into: Dtype | None, held: Dtype | None) -> bool:
    """Whether ``into`` has less room for a value that changes by ``change`` than ``held``: fewer
    exponents, or, where a shift may cover up what is there, fewer digits."""
    if into is None or held is None or not (is_floating(into) and is_floating(held)):
        return False
    one, other = ml_dtypes.finfo(into), ml_dtypes.finfo(held)
    shorter = int(one.minexp) > int(other.minexp) or int(one.maxexp) < int(other.maxexp)
    return shorter or (change.shifts and float(one.eps) > float(other.eps))


def held_where_read(value: Value, outputs: Sequence[Value]) -> Holds:
    """In which dtypes a model has all of ``value``, by the casts through which it is read;
    ``outputs``: those of the model."""
    dtypes = _read_as(value, outputs)
    return lambda into: all(_holds_all_of(into, dtype) for dtype in dtypes)


def held_where_made(value: Value) -> Holds:
    """In which dtypes a model has all of ``value``, by the casts that it comes through."""
    dtypes = [value.dtype]
    while (node := value.producer) is not None and node.operator.passes_through:
        value = node.data_input()
        dtypes.append(value.dtype)
    return lambda into: any(_holds_all_of(into, dtype) for dtype in dtypes)


def _read_as(value: Value, outputs: Sequence[Value]) -> list[Dtype | None]:
    if value in outputs or not value.uses:
        return [value.dtype]
    found: list[Dtype | None] = []
    for node in value.readers:
        moved = node.output
        if not node.operator.passes_through or node.data_input() is not value:
            found.append(value.dtype)
        elif moved.dtype != value.dtype:
            found.append(moved.dtype)
        else:
            found += _read_as(moved, outputs)
    return found


def _holds_all_of(into: Dtype, dtype: Dtype | None) -> bool:
    if dtype is None or not is_floating(dtype):
        return False
    one, other = ml_dtypes.finfo(into), ml_dtypes.finfo(dtype)
    longer = int(one.minexp) <= int(other.minexp) and int(one.maxexp) >= int(other.maxexp)
    return longer and float(one.eps) <= float(other.eps)
