"""``Linear``: a product with a constant matrix and an optional constant bias, in any spelling.

Spellings: the operator ``Linear``; ``MatMul(x, W)`` with or without an ``Add`` of a bias behind it;
``Gemm`` with alpha, beta and transB; a convolution with a kernel of size 1. ``W`` may be a weight
behind Identity, Cast, Transpose and the like. The weight is read and written as ``[out, in]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value

_GEMM_RANK = 2


@dataclass
class Linear:
    """One linear map ``y = W x + b`` along ``axis`` of its input and of its output.

    ``weight``: [out, in] and ``bias``: [out] or None, both float64 copies.
    """

    graph: Graph
    product: Node
    adder: Node | None
    axis: int
    weight: Array
    bias: Array | None

    @property
    def input(self) -> Value:
        return self.product.data_input()

    @property
    def output(self) -> Value:
        return (self.adder or self.product).output

    @property
    def name(self) -> str:
        """The name of its weight, or of its output where the weight has none of its own."""
        value = self.product.data_input(1)
        return value.name if value.producer is None else self.output.name

    def write(self, weight: Array, bias: Array | None) -> None:
        """Replaces weight [out, in] and bias [out]; other users of either keep their own copy.

        A Linear without a bias gains one where ``bias`` is not None. Arrays are cast once to the
        dtype that the graph has.
        """
        _WRITERS[self.product.op](self, weight, bias)
        self.weight, self.bias = np.array(weight), None if bias is None else np.array(bias)


def linear_at(graph: Graph, product: Node) -> Linear | None:
    """The Linear whose product is ``product``, or None if it is no such product."""
    reader = _READERS.get(product.op)
    return reader(graph, product) if reader else None


def linear_reading(graph: Graph, node: Node, index: int) -> Linear | None:
    """The Linear that reads its data through input ``index`` of ``node``."""
    return linear_at(graph, node) if index == 0 else None


def linear_writing(graph: Graph, value: Value) -> Linear | None:
    """The Linear whose result, bias included, is ``value``."""
    node = value.producer
    if node is None:
        return None
    if node.op == "Add":
        for operand in node.dynamic_inputs():
            product = operand.producer
            found = linear_at(graph, product) if product is not None else None
            if found is not None and found.adder is node:
                return found
        return None
    found = linear_at(graph, node)
    return found if found is not None and found.output is value else None


def _read_linear(graph: Graph, node: Node) -> Linear | None:
    return _read_product(graph, node, lambda weight: weight)


def _read_matmul(graph: Graph, node: Node) -> Linear | None:
    return _read_product(graph, node, np.transpose)


def _read_product(graph: Graph, node: Node, orient: Callable[[Array], Array]) -> Linear | None:
    weight = _matrix(graph, node)
    rank = node.data_input().rank
    if weight is None or rank is None or rank < 1:
        return None
    weight = orient(weight)
    own = node.input(2)
    if own is not None and node.op == "Linear":
        bias = _bias(graph, own, len(weight))
        return None if bias is None else Linear(graph, node, None, rank - 1, weight, bias)
    adder, bias = _added_bias(graph, node, len(weight))
    return Linear(graph, node, adder, rank - 1, weight, bias)


def _read_gemm(graph: Graph, node: Node) -> Linear | None:
    weight = _matrix(graph, node)
    if weight is None or node.attributes["transA"]:
        return None
    weight = weight * node.attributes["alpha"]
    weight = weight if node.attributes["transB"] else weight.T
    own = node.input(2)
    if own is None:
        return Linear(graph, node, None, 1, weight, None)
    bias = _bias(graph, own, len(weight))
    return (
        None
        if bias is None
        else Linear(graph, node, None, 1, weight, bias * node.attributes["beta"])
    )


def _read_conv(graph: Graph, node: Node) -> Linear | None:
    kernel = graph.constant(node.data_input(1)) if node.data_input(1).is_constant else None
    strides = node.attributes.get("strides") or (1,)
    if kernel is None or node.data_input().is_constant or node.attributes["group"] != 1:
        return None
    if any(size != 1 for size in kernel.shape[2:]) or any(stride != 1 for stride in strides):
        return None
    if any(node.attributes.get("pads") or ()):
        return None
    weight = kernel.reshape(kernel.shape[:2]).astype(np.float64)
    own = node.input(2)
    bias = None if own is None else _bias(graph, own, len(weight))
    if own is not None and bias is None:
        return None
    return Linear(graph, node, None, 1, weight, bias)


def _matrix(graph: Graph, node: Node) -> Array | None:
    """The constant second operand in float64, where it is a matrix and the first is data."""
    value = node.input(1)
    if value is None or not value.is_constant or node.data_input().is_constant:
        return None
    array = graph.constant(value)
    return array.astype(np.float64) if array is not None and array.ndim == 2 else None


def _bias(graph: Graph, value: Value, size: int) -> Array | None:
    """A constant that adds along the last axis alone (a scalar counts), as [size] in float64."""
    if not value.is_constant:
        return None
    shape = value.shape if value.shape is not None else (-1,)
    if any(s != 1 for s in shape[:-1]) or (shape and shape[-1] not in (1, size)):
        return None
    array = graph.constant(value)
    if array is None:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (size,)).copy()


def _added_bias(graph: Graph, node: Node, size: int) -> tuple[Node | None, Array | None]:
    """The Add of a bias that is the product's only reader."""
    product = node.output
    if len(product.uses) != 1 or product in graph.outputs:
        return None, None
    adder, index = product.uses[0]
    if adder.op != "Add" or len(adder.inputs) != 2:
        return None, None
    other = adder.data_input(1 - index)
    if other.rank is None or product.rank is None or other.rank > product.rank:
        return None, None
    bias = _bias(graph, other, size)
    return (None, None) if bias is None else (adder, bias)


def _write_linear(linear: Linear, weight: Array, bias: Array | None) -> None:
    node = linear.product
    put_constant(linear.graph, node, 1, weight)
    if bias is not None:
        _put_bias(linear, node, 2, bias)


def _write_matmul(linear: Linear, weight: Array, bias: Array | None) -> None:
    node = linear.product
    put_constant(linear.graph, node, 1, weight.T)
    if bias is None:
        return
    if linear.adder is not None:
        index = next(i for i, v in enumerate(linear.adder.inputs) if v is not node.output)
        put_constant(linear.graph, linear.adder, index, bias)
        return
    product = node.output
    value = linear.graph.add_constant(_cast(bias, node.data_input(1)), _bias_name(linear))
    if product.rank == _GEMM_RANK:  # one operator rather than two
        operands = [node.data_input(0), node.data_input(1), value]
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
        total = linear.graph.insert(
            "Gemm", operands, attributes, name=f"{product.name}_biased", like=node
        )
        linear.graph.replace_uses(product, total)
        return
    total = linear.graph.insert("Add", [product, value], name=f"{product.name}_biased", like=node)
    linear.adder = total.producer
    linear.graph.replace_uses(product, total, keep=[linear.adder] if linear.adder else [])


def _write_gemm(linear: Linear, weight: Array, bias: Array | None) -> None:
    node = linear.product
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    stored = weight if node.attributes["transB"] else weight.T
    if bias is not None and linear.bias is not None and beta == 0:
        raise ValueError(f"'{linear.name}': a Gemm with beta 0 cannot carry a bias")
    put_constant(linear.graph, node, 1, stored / alpha)
    if bias is not None:
        _put_bias(linear, node, 2, bias / beta)


def _write_conv(linear: Linear, weight: Array, bias: Array | None) -> None:
    node = linear.product
    spatial = node.data_input(1).rank or 2
    put_constant(linear.graph, node, 1, weight.reshape(weight.shape + (1,) * (spatial - 2)))
    if bias is not None:
        _put_bias(linear, node, 2, bias)


def _put_bias(linear: Linear, node: Node, index: int, bias: Array) -> None:
    if node.input(index) is not None:
        put_constant(linear.graph, node, index, bias)
        return
    array = _cast(bias, node.data_input(1))
    linear.graph.set_input(node, index, linear.graph.add_constant(array, _bias_name(linear)))


def put_constant(graph: Graph, node: Node, index: int, array: Array) -> None:
    """Gives ``node`` another constant as its input ``index``, in the dtype it had.

    The constant is replaced in place where nothing else reads it; else the node gets its own.
    """
    old = node.data_input(index)
    array = _cast(array, old)
    alone = old.producer is None and len(old.uses) == 1 and old not in graph.outputs
    if alone and old.shape:  # a scalar may be a literal of the call
        fits = array.size == math.prod(old.shape)
        graph.replace_constant(old, array.reshape(old.shape) if fits else array)
    else:
        graph.set_input(node, index, graph.add_constant(array, old.name))


def _bias_name(linear: Linear) -> str:
    owner, dot, last = linear.name.rpartition(".")
    return f"{owner}{dot}bias" if last == "weight" else f"{linear.name}_bias"


def _cast(array: Array, like: Value) -> Array:
    return np.ascontiguousarray(array, dtype=like.dtype)


_READERS: dict[str, Callable[[Graph, Node], Linear | None]] = {
    "Linear": _read_linear,
    "MatMul": _read_matmul,
    "Gemm": _read_gemm,
    "Conv": _read_conv,
}
_WRITERS: dict[str, Callable[[Linear, Array, Array | None], None]] = {
    "Linear": _write_linear,
    "MatMul": _write_matmul,
    "Gemm": _write_gemm,
    "Conv": _write_conv,
}
