"""ONNX operators in the view's form: parameters as attributes whatever the opset, axes
non-negative. Only reading; ``graph/onnx.py`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

# Operators whose trailing inputs are parameters in some opsets: (data inputs, parameter names).
_PARAMETERS: dict[str, tuple[int, tuple[str, ...]]] = {
    "Reshape": (1, ("shape",)),
    "Expand": (1, ("shape",)),
    "Squeeze": (1, ("axes",)),
    "Unsqueeze": (1, ("axes",)),
    "ReduceMean": (1, ("axes",)),
    "ReduceSum": (1, ("axes",)),
    "ReduceL2": (1, ("axes",)),
    "ReduceMax": (1, ("axes",)),
    "ReduceMin": (1, ("axes",)),
    "Slice": (1, ("starts", "ends", "axes", "steps")),
    "Split": (1, ("split",)),
    "Clip": (1, ("min", "max")),
    "Dropout": (1, ("ratio", "training_mode")),
    "Tile": (1, ("repeats",)),
    "Pad": (1, ("pads", "value", "axes")),
}
_SCALARS = ("min", "max", "ratio", "training_mode", "value")
_AXIS_DEFAULTS = {
    "Softmax": -1,
    "LayerNormalization": -1,
    "RMSNormalization": -1,
    "Gather": 0,
    "Concat": 0,
    "Split": 0,
    "Flatten": 1,
    "ArgMax": 0,
}
_EPSILON_DEFAULT = 1e-5
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceL2", "ReduceMax", "ReduceMin")
Constant = Callable[[int], Any]


def data_inputs(op: str, count: int, is_constant: Callable[[int], bool]) -> int:
    """How many leading inputs are data: constant parameters behind them become attributes."""
    if op not in _PARAMETERS:
        return count
    data = _PARAMETERS[op][0]
    return data if all(is_constant(i) for i in range(data, count)) else count


def attributes(
    op: str, own: dict[str, Any], ranks: Sequence[int | None], constant: Constant, data: int
) -> dict[str, Any]:
    """The attributes of the view's node.

    ``own``: the operator's attributes; ``ranks``: of its inputs, then of its first output;
    ``constant(i)``: input i as an array (None where absent); ``data``: from ``data_inputs``.
    """
    result = dict(own)
    rank = ranks[0] if ranks else None
    if op in _PARAMETERS and data == _PARAMETERS[op][0]:
        for offset, name in enumerate(_PARAMETERS[op][1]):
            array = constant(data + offset)
            if array is not None:
                flat = array.reshape(-1).tolist()
                result[name] = flat[0] if name in _SCALARS else tuple(flat)
    if op in _AXIS_DEFAULTS:
        axis = int(result.get("axis", _AXIS_DEFAULTS[op]))
        result["axis"] = axis + rank if axis < 0 and rank is not None else axis
    if op in _REDUCTIONS:
        result.setdefault("keepdims", 1)
        if not result.get("axes") and data == 1 and rank is not None:
            result["axes"] = tuple(range(rank))
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
    if op in ("LayerNormalization", "RMSNormalization", "BatchNormalization"):
        result.setdefault("epsilon", _EPSILON_DEFAULT)
    if op == "BatchNormalization":
        result.setdefault("training_mode", 0)
    if op == "Split":
        result["keepdims"] = True
    if op == "Cast":
        result["to"] = ir.DataType(result["to"]).numpy()
    if op == "Gemm":
        defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
        result = defaults | result
    if op == "Conv":
        result.setdefault("group", 1)
    if op == "AveragePool":
        result.setdefault("count_include_pad", 0)
    return result
