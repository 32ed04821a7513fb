"""Products with constant weights: ``Linear`` (a matrix) and ``Convolution`` (a kernel).

The bias is a constant or absent. A Linear may be spelled as the operator ``Linear``; as
``MatMul(x, W)`` or ``MatMul(W, x)``, with or without an ``Add`` of a bias behind it; as ``Gemm``
with alpha, beta, transA and transB, its data on either side; or as a convolution with a kernel of
size 1. ``W`` may be a weight behind Identity, Cast, Transpose and the like. The weight is read and
written as ``[out, in]``.

For example, to double what every Linear of a graph yields::

    for node in list(graph.nodes):
        linear = linear_at(graph, node)
        if linear is not None:
            bias = linear.bias
            linear.write(2 * linear.weight, None if bias is None else 2 * bias)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, contiguous, is_floating

_GEMM_RANK = 2
ADDER = "Add"
"""The operator that adds the bias of a product that has none of its own."""
_BIAS = 2  # the input that holds the bias of a Linear, a Gemm or a Conv


@dataclass(eq=False)
class Linear:
    """One linear map ``y = W x + b`` along ``axis`` of its input, to ``output_axis`` of its output.

    ``data``: which input of ``product`` is x. ``transposed``: its weight is stored as [in, out].
    ``alpha`` and ``beta``: the factors on the stored weight and bias. Weight and bias are loaded
    when asked for.
    """

    groups = 1
    moves_shifts = ""

    graph: Graph
    product: Node
    adder: Node | None
    data: int
    axis: int
    output_axis: int
    transposed: bool
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def input(self) -> Value:
        return self.product.data_input(self.data)

    @property
    def output(self) -> Value:
        return (self.adder or self.product).output

    @property
    def stored_weight(self) -> Value:
        """The constant that holds the weight, as the graph has it."""
        return self.product.data_input(1 - self.data)

    @property
    def name(self) -> str:
        """The name of its weight, or of its output where the weight has none of its own."""
        value = self.stored_weight
        return value.name if value.producer is None else self.output.name

    @property
    def sizes(self) -> tuple[int, int]:
        """(out, in), without loading the weight."""
        first, second = _shape(self.graph, self.stored_weight)[:2]
        return (second, first) if self.transposed else (first, second)

    @cached_property
    def weight(self) -> Array:
        """[out, in] in float64."""
        array = self.graph.constant(self.stored_weight)
        assert array is not None  # linear_at has checked it
        matrix = array.reshape(array.shape[:2]).astype(np.float64) * self.alpha
        return matrix.T if self.transposed else matrix

    @cached_property
    def bias(self) -> Array | None:
        """[out] in float64, or None."""
        value = self._stored_bias()
        array = None if value is None else self.graph.constant(value)
        if array is None:
            return None
        flat = array.astype(np.float64).reshape(-1) * self.beta
        return np.broadcast_to(flat, self.sizes[:1]).copy()

    def write(self, weight: Array, bias: Array | None) -> None:
        """Replaces weight [out, in] and bias [out]; other users of either keep their own copy.

        A Linear without a bias gains one where ``bias`` is not None. Arrays are cast once to the
        dtype that the graph has.
        """
        self.put(*self.as_stored(weight, bias))
        self.weight, self.bias = np.array(weight), None if bias is None else np.array(bias)

    def as_stored(self, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
        """Weight [out, in] and bias [out] in the form of the graph's constants, for ``put``."""
        kernel = (1,) * (len(_shape(self.graph, self.stored_weight)) - 2)
        stored = (weight.T if self.transposed else weight) / self.alpha
        return stored.reshape(stored.shape + kernel), None if bias is None else bias / self.beta

    def put(self, weight: Array, bias: Array | None) -> None:
        """``write`` of arrays that ``as_stored`` gave."""
        put_constant(self.graph, self.product, 1 - self.data, weight)
        if bias is not None:
            self._put_bias(bias)

    @property
    def dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Those of the constants of weight and bias; a new bias gets the weight's."""
        return _dtypes(self.stored_weight, self._stored_bias())

    def _stored_bias(self) -> Value | None:
        if self.adder is not None:
            return self.adder.data_input(self._bias_index(self.adder))
        return self.product.input(_BIAS) if self.product.operator.has_bias else None

    def _bias_index(self, adder: Node) -> int:
        return next(i for i, v in enumerate(adder.inputs) if v is not self.product.output)

    def _put_bias(self, bias: Array) -> None:
        trailing = 0
        if self.product.op != "Conv":
            trailing = (self.product.output.rank or 1) - 1 - self.output_axis
        bias = bias.reshape(-1, *(1,) * trailing)
        if self.adder is not None:
            put_constant(self.graph, self.adder, self._bias_index(self.adder), bias)
        elif not self.product.operator.has_bias:
            self._insert_bias(bias)
        elif self.product.input(_BIAS) is not None:
            put_constant(self.graph, self.product, _BIAS, bias)
        else:
            value = self._new_bias(bias)
            self.graph.set_input(self.product, _BIAS, value)

    def _insert_bias(self, bias: Array) -> None:
        """A bias behind a MatMul; of matrices both are one operator rather than two."""
        node, product, value = self.product, self.product.output, self._new_bias(bias)
        name = f"{product.name}_biased"
        if product.rank == self.input.rank == _GEMM_RANK:
            operands = [node.data_input(0), node.data_input(1), value]
            attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
            total = self.graph.insert("Gemm", operands, attributes, name=name, like=node)
            self.graph.replace_uses(product, total)
            return
        total = self.graph.insert(ADDER, [product, value], name=name, like=node)
        self.adder = total.producer
        self.graph.replace_uses(product, total, keep=[self.adder] if self.adder else [])

    def _new_bias(self, bias: Array) -> Value:
        owner, dot, last = self.name.rpartition(".")
        name = f"{owner}{dot}bias" if last == "weight" else f"{self.name}_bias"
        return self.graph.add_constant(_cast(bias, self.stored_weight), name)


@dataclass(eq=False)
class Convolution:
    """A convolution of any kernel size and number of groups, or a transposed one; channels are axis
    1 of its input and output.

    One with a kernel of size 1 and one group may be a ``Linear`` as well.
    """

    axis = output_axis = 1

    graph: Graph
    node: Node
    sizes: tuple[int, int]  # (out, in)
    groups: int
    transposed: bool = False

    @property
    def input(self) -> Value:
        return self.node.data_input()

    @property
    def output(self) -> Value:
        return self.node.output

    @property
    def name(self) -> str:
        value = self.stored_weight
        return value.name if value.producer is None else self.output.name

    @property
    def stored_weight(self) -> Value:
        """The constant that holds the kernel, as the graph has it: [out, in / groups, *sizes], or
        [in, out / groups, *sizes] of a transposed one."""
        return self.node.data_input(1)

    @property
    def moves_shifts(self) -> str:
        """Why a shift of its input is not the same shift at every position of its output; '' if it
        is."""
        attributes = self.node.attributes
        auto = attributes.get("auto_pad", "NOTSET")
        padded = any(attributes.get("pads") or ()) or auto not in ("NOTSET", "VALID")
        if not self.transposed:
            return "pads with zeros, which a shift moves" if padded else ""
        spread = any(size != 1 for size in (self.stored_weight.shape or ())[2:])
        spread = spread or any(stride != 1 for stride in attributes.get("strides") or ())
        more = any(attributes.get("output_padding") or ()) or bool(attributes.get("output_shape"))
        return "is transposed: a shift reaches its outputs unevenly" * (padded or spread or more)

    @cached_property
    def weight(self) -> Array:
        """[groups, out / groups, in / groups, *sizes] in float64."""
        stored = self._load(1)
        grouped = stored.reshape(self.groups, -1, *stored.shape[1:])
        return grouped.swapaxes(1, 2) if self.transposed else grouped

    @cached_property
    def bias(self) -> Array | None:
        """[out] in float64, or None."""
        return None if self.node.input(_BIAS) is None else self._load(_BIAS)

    @property
    def dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Those of the constants of kernel and bias; a new bias gets the kernel's."""
        return _dtypes(self.stored_weight, self.node.input(_BIAS))

    def as_stored(self, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
        """A kernel in the form of ``weight`` and bias [out] in that of the graph's constants."""
        kernel = weight.swapaxes(1, 2) if self.transposed else weight
        return kernel.reshape(-1, *kernel.shape[2:]), bias

    def put(self, weight: Array, bias: Array | None) -> None:
        """Replaces kernel and bias by arrays that ``as_stored`` gave; one without a bias gains it
        where ``bias`` is not None."""
        put_constant(self.graph, self.node, 1, weight)
        if bias is None:
            return
        if self.node.input(_BIAS) is not None:
            put_constant(self.graph, self.node, _BIAS, bias)
            return
        name = f"{self.name.removesuffix('.weight')}.bias"
        value = self.graph.add_constant(_cast(bias, self.stored_weight), name)
        self.graph.set_input(self.node, _BIAS, value)

    def _load(self, index: int) -> Array:
        array = self.graph.constant(self.node.data_input(index))
        assert array is not None  # convolution_at has checked it
        return array.astype(np.float64)


def linear_at(graph: Graph, product: Node) -> Linear | None:
    """The Linear whose product is ``product``, or None if it is no such product."""
    match product.op:
        case "Linear":
            return _read_linear(graph, product)
        case "MatMul":
            return _read_matmul(graph, product)
        case "Gemm":
            return _read_gemm(graph, product)
        case "Conv":
            return _read_conv(graph, product)
    return None


def linear_reading(graph: Graph, node: Node, index: int) -> Linear | None:
    """The Linear that reads its data through input ``index`` of ``node``."""
    found = linear_at(graph, node)
    return found if found is not None and found.data == index else None


def linear_writing(graph: Graph, value: Value) -> Linear | None:
    """The Linear whose result, bias included, is ``value``."""
    node = value.producer
    if node is None:
        return None
    products = [node]
    if node.op == ADDER:
        products = [v.producer for v in node.dynamic_inputs() if v.producer is not None]
    for product in products:
        found = linear_at(graph, product)
        if found is not None and found.output is value:
            return found
    return None


def convolution_at(graph: Graph, node: Node) -> Convolution | None:
    """The Convolution at ``node``, or None if it is none."""
    transposed = node.op == "ConvTranspose"
    if not (transposed or node.op == "Conv") or node.data_input().is_constant:
        return None
    kernel, bias = node.data_input(1), node.input(_BIAS)
    if not kernel.is_constant or kernel.shape is None or (bias and not bias.is_constant):
        return None
    groups = int(node.attributes.get("group", 1))
    first, second = kernel.shape[0], kernel.shape[1] * groups
    sizes = (second, first) if transposed else (first, second)
    return Convolution(graph, node, sizes, groups, transposed)


def _read_linear(graph: Graph, node: Node) -> Linear | None:
    data, rank = _data(graph, node), node.data_input().rank
    if data != 0 or not rank:
        return None
    size = _shape(graph, node.data_input(1))[0]
    if not _is_own_bias(graph, node, (size,)):
        return None
    adder = None if node.input(_BIAS) is not None else _adder(graph, node, (size,))
    return Linear(graph, node, adder, 0, rank - 1, rank - 1, transposed=False)


def _read_matmul(graph: Graph, node: Node) -> Linear | None:
    data = _data(graph, node)
    rank = None if data is None else node.data_input(data).rank
    if data is None or not rank or rank <= data:
        return None
    first, second = _shape(graph, node.data_input(1 - data))
    adder = _adder(graph, node, (second,) if data == 0 else (first, 1))
    axis = rank - 1 - data
    return Linear(graph, node, adder, data, axis, axis, transposed=data == 0)


def _read_gemm(graph: Graph, node: Node) -> Linear | None:
    data = _data(graph, node)
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    if data is None or alpha == 0 or beta == 0:  # with a zero, nothing can be absorbed
        return None
    flipped = [bool(node.attributes["transA"]), bool(node.attributes["transB"])]
    axis = (0 if flipped[0] else 1) if data == 0 else (1 if flipped[1] else 0)
    transposed = not flipped[1] if data == 0 else flipped[0]
    shape = _shape(graph, node.data_input(1 - data))
    size = shape[1] if transposed else shape[0]
    if not _is_own_bias(graph, node, (size,) if data == 0 else (size, 1)):
        return None
    return Linear(graph, node, None, data, axis, 1 - data, transposed, alpha, beta)


def _read_conv(graph: Graph, node: Node) -> Linear | None:
    kernel = node.data_input(1)
    strides = node.attributes.get("strides") or (1,)
    if not kernel.is_constant or node.data_input().is_constant or node.attributes["group"] != 1:
        return None
    shape = _shape(graph, kernel)
    if any(size != 1 for size in shape[2:]) or any(stride != 1 for stride in strides):
        return None
    if any(node.attributes.get("pads") or ()) or not _is_own_bias(graph, node, shape[:1]):
        return None
    return Linear(graph, node, None, 0, 1, 1, transposed=False)


def _data(graph: Graph, node: Node) -> int | None:
    """The operand that is data, where the other one is a constant matrix."""
    for data in (0, 1):
        weight, x = node.data_input(1 - data), node.data_input(data)
        if weight.is_constant and not x.is_constant:
            return data if len(_shape(graph, weight)) == 2 else None
    return None


def _shape(graph: Graph, constant: Value) -> tuple[int, ...]:
    if constant.shape is not None:
        return constant.shape
    array = graph.constant(constant)
    assert array is not None
    return array.shape


def _is_own_bias(graph: Graph, node: Node, wanted: tuple[int, ...]) -> bool:
    bias = node.input(_BIAS)
    return bias is None or _is_bias(graph, bias, wanted)


def _is_bias(graph: Graph, value: Value, wanted: tuple[int, ...]) -> bool:
    """Whether it is a constant that adds along the channels alone (a scalar counts); ``wanted``:
    the shape of one."""
    if not value.is_constant:
        return False
    shape = _shape(graph, value)
    if math.prod(shape) == 1:
        return True
    while len(shape) > len(wanted) and shape[0] == 1:
        shape = shape[1:]
    return shape == wanted


def _adder(graph: Graph, node: Node, wanted: tuple[int, ...]) -> Node | None:
    """The Add of a bias that is the product's only reader."""
    product = node.output
    if len(product.uses) != 1 or product in graph.outputs:
        return None
    adder, index = product.uses[0]
    if adder.op != ADDER or len(adder.inputs) != 2:
        return None
    other = adder.data_input(1 - index)
    if other.rank is None or product.rank is None or other.rank > product.rank:
        return None
    return adder if _is_bias(graph, other, wanted) else None


def put_constant(graph: Graph, node: Node, index: int, array: Array) -> None:
    """Gives ``node`` another constant as its input ``index``, in the dtype it had.

    The constant is replaced in place where nothing else reads it; else the node gets its own.
    """
    old = node.data_input(index)
    array = contiguous(array, stored_dtype(node, index))
    alone = old.producer is None and len(old.uses) == 1 and old not in graph.outputs
    if alone and old.shape:  # a scalar may be a literal of the call
        fits = array.size == math.prod(old.shape)
        graph.replace_constant(old, array.reshape(old.shape) if fits else array)
    else:
        graph.set_input(node, index, graph.add_constant(array, old.name))


def stored_dtype(node: Node, index: int) -> np.dtype[Any] | None:
    """The dtype in which ``put_constant`` writes: the constant's own, or that of the result in
    place of integers and of a number, which may be a literal of another type."""
    old = node.data_input(index)
    return old.dtype if _has_own_dtype(old) else node.output.dtype


def _has_own_dtype(constant: Value) -> bool:
    return bool(constant.shape) and constant.dtype is not None and is_floating(constant.dtype)


def _dtypes(weight: Value, bias: Value | None) -> tuple[np.dtype[Any], np.dtype[Any]]:
    first = np.dtype(np.float32) if weight.dtype is None else weight.dtype
    if bias is None or bias.dtype is None or not _has_own_dtype(bias):
        return first, first
    return first, bias.dtype


def _cast(array: Array, like: Value) -> Array:
    return contiguous(array, like.dtype)
