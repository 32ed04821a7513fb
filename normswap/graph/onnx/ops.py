"""ONNX operators in the view's form: parameters as attributes whatever the opset, axes
non-negative. Only reading; ``graph/onnx.py`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from normswap.graph.operators import operator

_SCALARS = ("min", "max", "ratio", "training_mode", "value")
Constant = Callable[[int], Any]


def data_inputs(op: str, count: int, is_constant: Callable[[int], bool]) -> int:
    """How many leading inputs are data: constant parameters behind them become attributes."""
    if not operator(op).parameters:
        return count
    return 1 if all(is_constant(i) for i in range(1, count)) else count


_TRAINING_MODE, _NO_IS_TEST = 14, 7  # the opsets that brought the one and dropped the other


def trains(own: dict[str, Any], opset: int, outputs: int) -> int:
    """Whether a BatchNormalization takes the batch's own statistics: its ``training_mode``, which
    the number of its ``outputs`` stands for in older opsets, and ``is_test`` in the oldest."""
    if opset >= _TRAINING_MODE:
        return int(own.get("training_mode", 0))
    if opset >= _NO_IS_TEST:
        return int(outputs > 1)
    return int(not own.get("is_test", 0))


def attributes(
    op: str, own: dict[str, Any], ranks: Sequence[int | None], constant: Constant, data: int
) -> dict[str, Any]:
    """The attributes of the view's node.

    ``own``: the operator's attributes; ``ranks``: of its inputs, then of its first output;
    ``constant(i)``: input i as an array (None where absent); ``data``: from ``data_inputs``.
    """
    known, rank = operator(op), ranks[0] if ranks else None
    result = {**known.defaults, **own}
    if data == 1:
        for offset, name in enumerate(known.parameters):
            array = constant(data + offset)
            if array is not None:
                flat = array.reshape(-1).tolist()
                result[name] = flat[0] if name in _SCALARS else tuple(flat)
        reduces = "axes" in known.parameters and "keepdims" in known.defaults
        if reduces and not result.get("axes") and rank is not None:
            result["axes"] = tuple(range(rank))
    if "axis" in known.defaults:
        axis = int(result["axis"])
        result["axis"] = axis + rank if axis < 0 and rank is not None else axis
    if op == "Slice" and "starts" in result:
        result.setdefault("axes", tuple(range(len(result["starts"]))))
        result.setdefault("steps", (1,) * len(result["starts"]))
    if "axes" in result:
        base = ranks[-1] if op == "Unsqueeze" else rank
        result["axes"] = tuple(
            a + base if a < 0 and base is not None else a for a in result["axes"]
        )
    if op == "Transpose" and "perm" not in result and rank is not None:
        result["perm"] = tuple(reversed(range(rank)))
    if op == "Cast":
        result["to"] = ir.DataType(result["to"]).numpy()
    return result
