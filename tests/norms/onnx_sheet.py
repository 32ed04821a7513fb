"""``Sheet``: an ONNX graph as it is written down, node after node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT32, FLOAT16, FLOAT64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)
INT64 = np.dtype(np.int64)
Size = int | str  # a name is a dynamic size

# From which opset on an operator takes its axes as an input.
_AXES_INPUT = {"ReduceSum": 13, "Unsqueeze": 13, "Squeeze": 13}
_REDUCTION_AXES_INPUT = 18


class Sheet:
    """Nodes, constants, inputs and outputs. Each method that adds a node returns its value's name.

    A value has the dtype of its node's first input unless another is told.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, sizes: Sequence[Size], dtype: np.dtype[Any] = FLOAT32) -> str:
        self._inputs.append(_info(name, dtype, sizes))
        self.dtypes[name] = dtype
        return name

    def output(self, name: str, rank: int) -> None:
        self._outputs.append(_info(name, self.dtypes[name], [None] * rank))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node, and the name of its first output."""
        dtype = attributes.pop("dtype", None) or self.dtypes[inputs[0]]
        name = f"{kind.lower()}_{len(self._nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        self.dtypes.update(dict.fromkeys(names, dtype))
        return name

    def constant(self, array: Any, dtype: np.dtype[Any] = FLOAT32, how: str = "initializer") -> str:
        """A constant of ``dtype``.

        ``how``: initializer, node (a Constant), number (a Constant's attribute, where it can be),
        identity, cast (from float64), transpose (where it has two axes or more).
        """
        array = np.asarray(array).astype(dtype)
        number = array.ndim == 0 and dtype == FLOAT32 and self.opset >= 12
        if how == "number" and number:
            return self.op("Constant", dtype=dtype, value_float=float(array))
        if how in ("node", "number"):
            return self.op("Constant", dtype=dtype, value=numpy_helper.from_array(array))
        if how == "cast":
            wide = self.constant(array, INT64 if dtype.kind == "i" else FLOAT64)
            return self.cast(wide, dtype)
        if how == "transpose" and array.ndim >= 2:
            perm = list(reversed(range(array.ndim)))
            stored = self.constant(np.ascontiguousarray(array.transpose(perm)), dtype)
            return self.op("Transpose", stored, perm=perm)
        name = f"stored_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        self.dtypes[name] = dtype
        return self.op("Identity", name) if how == "identity" else name

    def cast(self, x: str, dtype: np.dtype[Any]) -> str:
        """``x`` in ``dtype``; no node where it has it already."""
        if self.dtypes[x] == dtype:
            return x
        return self.op("Cast", x, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def over(self, kind: str, x: str, axes: Sequence[int], **attributes: Any) -> str:
        """A reduction, Squeeze or Unsqueeze, with its axes where the opset wants them."""
        reduction = kind.startswith("Reduce")
        since = _AXES_INPUT.get(kind, _REDUCTION_AXES_INPUT if reduction else 0)
        if self.opset < since:
            return self.op(kind, x, axes=list(axes), **attributes)
        return self.op(kind, x, self.constant(list(axes), INT64), **attributes)

    def reshape(self, x: str, sizes: Sequence[int]) -> str:
        return self.op("Reshape", x, self.constant(list(sizes), INT64))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.op("Transpose", x, perm=list(perm))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "spelling", self._inputs, self._outputs, self._constants
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def _info(name: str, dtype: np.dtype[Any], sizes: Sequence[Size | None]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    return helper.make_tensor_value_info(name, kind, sizes)
