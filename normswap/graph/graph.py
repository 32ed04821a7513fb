"""The view of a model's graph that every pass works on: ``Graph``, ``Node``, ``Value``.

Operators have ONNX's names and semantics, whether the graph is a torch FX graph or an ONNX graph:

* ``Linear`` is added: ``y = x @ W.T + b`` with a constant ``W`` of shape ``[out, in]``.
* Parameters that ONNX moved between attributes and inputs from opset to opset (axes, shape,
  starts, ...) are attributes whenever they are constant. Axes are non-negative when the rank is
  known. A parameter that is computed by the graph stays an input and its attribute is absent.
* ``Split`` with ``keepdims=False`` also drops the axis it splits (torch's ``unbind``).
* ``GatherND`` has ``depth``: how many leading axes of the data its indices consume.
* ``Cast`` has ``to`` as a numpy dtype (in ONNX, and where a pass inserts one).
* ``Attention`` is any fused softmax(q k^T) v.
* An operator without an ONNX counterpart keeps its own qualified name (``aten.roll.default``,
  ``com.microsoft.SkipLayerNormalization``). It can be evaluated but is opaque to the passes.

Constants (weights, buffers, initializers) are values without a producer. ``Value.shape`` holds the
sizes at the example inputs' sizes, so a dynamic batch appears as the example's batch size.

For example, to scale what a graph's first node yields, for all its readers::

    y = graph.nodes[0].output
    two = graph.add_constant(np.array(2, y.dtype), "two")
    doubled = graph.insert("Mul", [y, two], name="doubled", like=y.producer)
    graph.replace_uses(y, doubled, keep=[doubled.producer])
    graph.prune()
    (array,) = graph.evaluate([doubled], {graph.inputs[0]: x})
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from normswap.graph.operators import operator

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
Array = np.ndarray
Runner = Callable[[Sequence[Array]], list[Array]]


@functools.cache
def is_floating(dtype: Any) -> bool:
    """Whether a numpy dtype is a floating-point one; bfloat16 (of ml_dtypes) is."""
    return np.issubdtype(dtype, np.floating) or np.dtype(dtype) == BFLOAT16


class Carried(Protocol):
    """What constants of a graph carry beside their numbers: see ``field/duals.py``."""

    def read(self, value: Value, array: Array) -> Array:
        """The array of a constant, as a pass reads it."""

    def note(self, value: Value, array: Array) -> None:
        """A constant is new, or has another array from now on."""

    def copied(self, graph: Graph) -> Carried:
        """The same for a copy of the graph, whose values have the same names."""


def contiguous(array: Array, dtype: Any = None) -> Array:
    """``numpy.ascontiguousarray``, of an array that may carry more than its numbers."""
    if hasattr(array, "contiguous"):
        carrying: Array = array.contiguous(dtype)
        return carrying
    return np.ascontiguousarray(array, dtype)


def alike(array: Array, other: Array) -> Array:
    """``array``, carrying more than its numbers where ``other`` does, to be written into."""
    return other.alike(array) if hasattr(other, "alike") else array


class Value:
    """A tensor that flows through the graph, or a constant.

    ``raw``: the adapter's handle. ``shape``: sizes at the example inputs, or None if unknown.
    ``dtype``: numpy dtype (bfloat16 of ml_dtypes), or None if unknown. ``producer``: the node that
    yields it, or None. ``uses``: the (node, input index) pairs that read it.
    """

    def __init__(
        self,
        name: str,
        raw: Any,
        shape: tuple[int, ...] | None = None,
        dtype: np.dtype[Any] | None = None,
        is_constant: bool = False,
    ) -> None:
        self.name = name
        self.raw = raw
        self.shape = shape
        self.dtype = dtype
        self.is_constant = is_constant
        self.producer: Node | None = None
        self.uses: list[tuple[Node, int]] = []

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def readers(self) -> list[Node]:
        """The distinct nodes that read this value, in order."""
        return list(dict.fromkeys(node for node, _ in self.uses))

    @property
    def origin(self) -> Value:
        """The value that this one only moves or copies; itself where anything else computes it."""
        value = self
        while value.producer is not None and value.producer.operator.passes_through:
            value = value.producer.data_input()
        return value

    def __repr__(self) -> str:
        return f"Value({self.name}: {self.shape})"


class Node:
    """One operator: ``op`` (ONNX name), ``inputs``, ``attributes``, ``outputs``, and what is known
    of it, ``operator``, a row of ``operators.py``.

    ``raw``: the adapter's handle. ``scope``: the module path that the graph records for the node
    ('' where it records none). ``nested``: the operators in the bodies that it may run (If, Loop),
    which the passes do not look into.
    """

    def __init__(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        outputs: Sequence[Value],
        raw: Any,
        scope: str = "",
        nested: Iterable[str] = (),
    ) -> None:
        self.op = op
        self.operator = operator(op)
        self.nested = frozenset(nested)
        self.inputs = list(inputs)
        self.attributes = dict(attributes)
        self.outputs = list(outputs)
        self.raw = raw
        self.scope = scope
        self.connect()

    def connect(self) -> None:
        """Registers the node with the values that it reads and yields."""
        for value in self.outputs:
            value.producer = self
        for index, read in enumerate(self.inputs):
            if read is not None:
                read.uses.append((self, index))

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def input(self, index: int) -> Value | None:
        """The input at ``index``, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def data_input(self, index: int = 0) -> Value:
        """The input at ``index``. Raises ValueError where it is absent."""
        value = self.input(index)
        if value is None:
            raise ValueError(f"{self.op} node {self.output.name} lacks its input {index}")
        return value

    def dynamic_inputs(self) -> list[Value]:
        """The inputs that are present and no constants."""
        return [v for v in self.inputs if v is not None and not v.is_constant]

    def __repr__(self) -> str:
        names = ", ".join(v.name if v else "-" for v in self.inputs)
        return f"Node({self.output.name} = {self.op}({names}) {self.attributes})"


class Graph(abc.ABC):
    """A view of a graph that can be edited, and of which any slice can be evaluated.

    There is one subclass for each ``kind`` of graph ("fx", "onnx"), its adapter. It fills
    ``inputs``, ``outputs`` and ``nodes`` and implements the abstract methods. ``nodes`` is in
    topological order at all times. ``version`` counts the edits. ``not_in_double``: operators that
    runs in float64 have so far computed in their own dtype, for want of anything better.
    ``carried``: what the constants are beside the numbers that the graph holds (field/duals.py).
    """

    kind: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]

    def __init__(self) -> None:
        self.inputs = []
        self.outputs = []
        self.nodes = []
        self._values: dict[str, Value] = {}
        self._folded: dict[Value, Array] = {}
        self.version = 0
        self.not_in_double: set[str] = set()
        self.carried: Carried | None = None

    # -- reading ---------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        """The value called ``name``; KeyError if the graph has none."""
        return self._values[name]

    def values(self) -> Iterator[Value]:
        """All values that have a name: inputs, constants and results of nodes."""
        return iter(self._values.values())

    def constant(self, value: Value) -> Array | None:
        """The array of a constant, in its own dtype; None if ``value`` depends on an input.

        Constants behind Identity, Cast, Transpose and the like are computed once and kept.
        """
        if not value.is_constant:
            return None
        array = self.plain_constant(value)
        return array if self.carried is None else self.carried.read(value, array)

    def plain_constant(self, value: Value) -> Array:
        """The numbers that the graph has for a constant, whatever they carry."""
        if value.producer is None:
            return self._read(value)
        if value not in self._folded:
            self._folded[value] = self._compute_constant(value)
        return self._folded[value]

    def scalar(self, value: Value | None) -> float | None:
        """The number that a one-element constant holds, else None."""
        if value is None or not value.is_constant or (value.shape and np.prod(value.shape) != 1):
            return None
        array = self.constant(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    @abc.abstractmethod
    def slice(self, inputs: Sequence[Value], outputs: Sequence[Value], dtype: Any = None) -> Runner:
        """A function that computes ``outputs`` from arrays for ``inputs``.

        ``dtype=None`` computes as the graph's own runtime does, ``numpy.float64`` computes every
        floating-point operator in float64 (casts between float types are identities there), and
        ``numpy.float16`` or bfloat16 rounds every value to it (see ``simulation.py``).
        Raises ValueError if an output depends on a graph input that is not covered.
        """

    @abc.abstractmethod
    def signature(self, node: Node) -> Hashable | None:
        """What the computation of a node depends on but the values that it reads: equal for nodes
        that compute the same. None where that cannot be said in short."""

    @abc.abstractmethod
    def is_bare(self, node: Node) -> bool:
        """Whether its operator and the values that a node reads say all that it computes: no
        option is given, in whatever form the graph keeps them."""

    def evaluate(
        self, outputs: Sequence[Value], feeds: Mapping[Value, Array], dtype: Any = None
    ) -> list[Array]:
        """Computes ``outputs`` once from ``feeds`` (see ``slice``)."""
        return self.slice(list(feeds), outputs, dtype)(list(feeds.values()))

    def ancestors(self, outputs: Iterable[Value], stop: Iterable[Value] = ()) -> list[Node]:
        """The nodes that compute ``outputs`` from the graph's inputs, or from the values ``stop``,
        in topological order."""
        stops = set(stop)

        def producers(values: Iterable[Value | None]) -> list[Node]:
            return [v.producer for v in values if v and v not in stops and v.producer]

        return topological(producers(outputs), lambda node: producers(node.inputs))

    def sources(self, values: Iterable[Value], stop: Iterable[Value] = ()) -> list[Value]:
        """The graph's inputs that ``values`` depend on, in order. A value in ``stop`` counts as
        given: what it depends on does not matter."""
        values = list(values)
        reads = {v for node in self.ancestors(values, stop) for v in node.inputs} | set(values)
        return [value for value in self.inputs if value in reads]

    def descendants(self, values: Iterable[Value]) -> set[Value]:
        """``values`` and all values that depend on their contents, not only on their sizes."""
        found = set(values)
        for node in self.nodes:
            if not found.isdisjoint(node.inputs) and not node.operator.reads_sizes_only:
                found.update(node.outputs)
        return found

    # -- editing ---------------------------------------------------------------------------------

    def add_constant(self, array: Array, name: str) -> Value:
        """A new constant. A ``name`` that is taken gets a number behind it."""
        array = contiguous(array)
        raw, name = self._store(np.asarray(array), self._unique(name))
        value = Value(name, raw, tuple(array.shape), array.dtype, is_constant=True)
        self._values[name] = value
        if self.carried is not None:
            self.carried.note(value, array)
        return value

    def insert(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
        like: Node | None = None,
    ) -> Value:
        """Inserts a node right behind the last producer of its inputs; its first output.

        ``name``: the output's, with a number behind it where the name is taken. ``like``: the node
        whose metadata (module path, profiling scope) it copies. Raises ValueError for an operator
        that the adapter cannot write.
        """
        attributes = dict(attributes or {})
        position = 1 + max(
            (self.nodes.index(v.producer) for v in inputs if v is not None and v.producer),
            default=-1,
        )
        raw, outputs = self._emit(op, inputs, attributes, self._unique(name), like)
        node = Node(op, inputs, attributes, outputs, raw, like.scope if like else "")
        self.nodes.insert(position, node)
        self.version += 1
        for value in outputs:
            self._values[value.name] = value
        return node.output

    def set_input(self, node: Node, index: int, value: Value) -> None:
        """Makes ``node`` read ``value`` as its input ``index``, which may have been absent."""
        self._rewire(node, index, value)
        self.version += 1
        while len(node.inputs) <= index:
            node.inputs.append(None)
        old = node.inputs[index]
        if old is not None:
            old.uses.remove((node, index))
        node.inputs[index] = value
        value.uses.append((node, index))

    def replace_uses(self, old: Value, new: Value, keep: Iterable[Node] = ()) -> None:
        """Lets every reader of ``old``, except the nodes ``keep``, read ``new`` instead; where
        ``old`` is an output of the graph, ``new`` takes its place."""
        kept = set(keep)
        for node, index in list(old.uses):
            if node not in kept:
                self.set_input(node, index, new)
        for position, output in enumerate(self.outputs):
            if output is old:
                self._rewire_output(position, new)
                self.version += 1
                self.outputs[position] = new

    def prune(self) -> None:
        """Removes every node and constant that no graph output needs."""
        alive = set(self.ancestors(self.outputs))
        dead = [node for node in self.nodes if node not in alive]
        for node in dead:
            for index, value in enumerate(node.inputs):
                if value is not None:
                    value.uses.remove((node, index))
            for value in node.outputs:
                self._values.pop(value.name, None)  # an optional output may have no name
        self.nodes = [node for node in self.nodes if node in alive]
        kept = set(self.outputs) | set(self.inputs)
        for value in [v for v in self._values.values() if v.producer is None]:
            if not value.uses and value not in kept:
                del self._values[value.name]
        self._erase(dead)

    def require(self, op: str) -> None:  # noqa: B027
        """Makes sure that ``insert`` can write ``op``: an ONNX graph raises its opset if it must.

        Values stay the same objects, and so do nodes that the newer opset writes alike. Raises
        NormswapError where the opset cannot be raised.
        """

    def settle_weights(self) -> list[str]:
        """Makes constants of weights that a caller may override, which an ONNX file allows: edits
        rely on them. The names of those that no caller can override any more."""
        return []

    def load_refusal(self) -> str:
        """Why the graph's own runtime does not load it, in one line; '' if it does."""
        return ""

    @property
    @abc.abstractmethod
    def has_fixed_sizes(self) -> bool:
        """Whether inputs have to have the sizes of the example inputs."""

    def why_not_half(self, node: Node, dtype: np.dtype[Any]) -> str:
        """Why a node cannot compute in ``dtype``, float16 or bfloat16; '' if it can."""
        return "it runs bodies of other operators" if node.operator.control_flow else ""

    @abc.abstractmethod
    def in_half(self, dtype: np.dtype[Any], wide: Collection[Node], keep_io: bool) -> Graph:
        """An independent graph in ``dtype``, float16 or bfloat16: all that is floating is in it,
        but for the nodes ``wide``, which compute as they do, between casts.

        Constants are rounded (``rounding.as_half``). ``keep_io``: the graph's inputs and outputs
        keep their dtypes.
        """

    def as_attribute(self, number: float) -> float:
        """``number`` in the precision that the graph stores an attribute in."""
        return number

    def whole(self, dtype: Any = None) -> Runner:
        """A function from arrays for the graph's inputs to those of its outputs (see ``slice``)."""
        return self.slice(self.inputs, self.outputs, dtype)

    @abc.abstractmethod
    def replace_constant(self, value: Value, array: Array) -> None:
        """Gives a constant without a producer another array, for all its readers."""

    @abc.abstractmethod
    def copy(self) -> Graph:
        """An independent graph with the same value names; weights are shared until replaced."""

    # -- what an adapter provides ----------------------------------------------------------------

    @abc.abstractmethod
    def _read(self, value: Value) -> Array:
        """The array of a constant without a producer, memory-mapped where it can be."""

    @abc.abstractmethod
    def _compute_constant(self, value: Value) -> Array:
        """The array of a constant that nodes compute from constants."""

    @abc.abstractmethod
    def _store(self, array: Array, name: str) -> tuple[Any, str]:
        """Adds a constant to the underlying graph; its handle and final name."""

    @abc.abstractmethod
    def _emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        name: str,
        like: Node | None,
    ) -> tuple[Any, list[Value]]:
        """Adds a node to the underlying graph; its handle and its output values."""

    @abc.abstractmethod
    def _rewire(self, node: Node, index: int, value: Value) -> None:
        """Sets one input of the underlying node."""

    @abc.abstractmethod
    def _rewire_output(self, position: int, value: Value) -> None:
        """Sets one output of the underlying graph, keeping the output's name."""

    @abc.abstractmethod
    def _erase(self, nodes: Sequence[Node]) -> None:
        """Removes dead nodes, and all else that nothing needs, from the underlying graph."""

    def _replaced(self, value: Value, array: Array) -> None:
        """Updates the view after ``replace_constant``; constants computed from it are forgotten."""
        value.shape, value.dtype = tuple(array.shape), array.dtype
        self.version += 1
        self._folded.clear()
        if self.carried is not None:
            self.carried.note(value, array)

    def _carried_to(self, duplicate: Graph) -> None:
        """Lets a copy carry what this graph does."""
        if self.carried is not None:
            duplicate.carried = self.carried.copied(duplicate)

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._values:
            count += 1
            candidate = f"{name}_{count}"
        return candidate


def topological(nodes: Iterable[Any], behind: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """``nodes`` and all nodes that they depend on, each after those that it depends on.

    ``behind``: the nodes that a node depends on directly.
    """
    order: dict[Any, None] = {}
    opened: set[Any] = set()
    stack = list(nodes)
    while stack:
        node = stack[-1]
        if node in opened:
            stack.pop()
            order[node] = None
        else:
            opened.add(node)
            stack += [other for other in behind(node) if other not in opened]
    return list(order)
