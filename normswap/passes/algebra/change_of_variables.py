"""The fold algebra: what else changes when one value of a graph takes another one's place.

A value that changes is written anew as v' with v = A v' + t (the *owed* form: what a reader has to
apply) or v' = A v + t (the *gained* form: what a writer has to apply). From one such value the
change spreads through the graph until weights absorb it:

| operator | rule |
|---|---|
| Linear, Conv that reads v | W' = W A, b' = b + W t; the shift only where it pads with no zeros |
| Linear, Conv that writes v | W' = A W, b' = A b + t; one without a bias gains it |
| a constant (class token, positions, embedding table) | c' = A c + t |
| Add, Sub | A is the same for operands and result, shifts add up; one operand takes a new shift |
| Mul, Div by a constant, Neg | A is the same, the shift is multiplied too |
| Concat | every part has its own part of the map |
| what ``moves.py`` lists | through |
| Shape | reads sizes only |
| anything else, and the model's inputs and outputs | refuses |

With a map that came without its inverse, the change may only be absorbed in the form that it has:
going down, by readers; going up, by writers. With the inverse, whole streams change their
variables: what is owed downward is undone in everything else that writes into the stream.
Nothing is edited before the whole change is known to be absorbed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import ml_dtypes
import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.passes.algebra import moves
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.map_axes import joined, section, with_axis, without_axis
from normswap.passes.algebra.weight_edits import Variables, Weight, WeightEdits
from normswap.passes.base import Refusal

# Measured: with a full matrix in float32 and float16 the error of a stream in new variables stays
# within the exact contract up to 8 and leaves it at 16. A diagonal one costs nothing at any spread
# that the exponents hold.
_CONDITION = 10.0


@dataclass(frozen=True)
class Start:
    """Where a change starts: ``value`` changes by ``change``, in the owed form or the gained one.

    ``around``: the nodes between a removed map's input and output, which are left alone.
    ``unchanged``: the value at the other end of it, if there is one. ``closed``: nodes that take
    no change, whatever they are. ``part``: a change that comes up to an operator which takes a part
    of its input concerns that part alone.
    """

    value: Value
    change: ChannelMap
    owed: bool
    around: frozenset[Node] = frozenset()
    unchanged: Value | None = None
    closed: frozenset[Node] = frozenset()
    part: bool = False


def spread(graph: Graph, edits: WeightEdits, start: Start) -> Callable[[], None]:
    """The edits that absorb the change that starts at ``start``, as one action.

    Raises Refusal where something cannot take its part of the change.
    """
    change = Change(graph, edits, start)
    change.spread()
    actions = change.actions()

    def act() -> None:
        for action in actions:
            action()

    return act


@dataclass
class Change:
    """A change on its way; ``known``: the values that it has reached, each with its part of it."""

    graph: Graph
    edits: WeightEdits
    start: Start
    known: dict[Value, ChannelMap] = field(default_factory=dict)
    weights: dict[Weight, None] = field(default_factory=dict)
    constants: dict[tuple[Node, int], ChannelMap] = field(default_factory=dict)

    @property
    def _may_invert(self) -> bool:
        return self.start.change.inverse is not None

    def spread(self) -> None:
        self.condition = self.start.change.condition if self._may_invert else 1.0
        self.position = {node: i for i, node in enumerate(self.graph.nodes)}
        self.queue: list[int] = []
        self._set(self.start.value, self.start.change)
        while self.queue:  # in the graph's order, so that operands are known before their sum
            node = self.graph.nodes[heapq.heappop(self.queue)]
            while self.queue and self.queue[0] == self.position[node]:
                heapq.heappop(self.queue)
            self._visit(node)

    def _set(self, value: Value, change: ChannelMap) -> None:
        """Notes the change of a value, or checks it against the one that is known."""
        change = change.compact()
        if value in self.known:
            if not self.known[value].is_same(change):
                raise Refusal(f"'{value.name}' would have to change in two ways")
            return
        if change.is_neutral():
            return  # what reads it checks that it stays so
        if value is self.start.unchanged:
            raise Refusal(f"'{value.name}' would have to change too")
        if value in self.graph.outputs:
            raise Refusal(f"'{value.name}' is an output of the model")
        if value.producer is None:
            raise Refusal(f"'{value.name}' is an input of the model")
        self.known[value] = change
        for node in [value.producer, *value.readers]:
            if node not in self.start.around:
                heapq.heappush(self.queue, self.position[node])

    def _visit(self, node: Node) -> None:
        if node in self.start.closed:
            raise self._refusal(node)
        weight = self.edits.weight_of(node)
        if weight is not None:
            self._reach(weight, node)
        elif node.op in ("Add", "Sub"):
            self._sum(node)
        elif node.op == "Concat":
            self._concat(node)
        elif node.op in ("Mul", "Div", "Neg"):
            self._multiple(node)
        elif moves.moves(node.op):
            self._move(node)
        elif node.op != "Shape" or any(v in self.known for v in node.outputs):
            raise self._refusal(node)

    def _refusal(self, node: Node) -> Refusal:
        called = f"{node.op} '{node.output.name}'"
        if any(v in self.known for v in node.outputs):
            return Refusal(f"{called} computes it")
        value = next(v for v in node.inputs if v in self.known)
        if self.start.owed or value is None:
            return Refusal(f"{called} reads it")
        return Refusal(f"'{value.name}' is read elsewhere too, by {called}")

    def _reach(self, weight: Weight, node: Node) -> None:
        if any(v in self.known and v is not weight.input for v in node.dynamic_inputs()):
            raise self._refusal(node)
        wrong_way = weight.output if self.start.owed else weight.input
        if not self._may_invert and wrong_way in self.known:
            done = "written" if self.start.owed else "read"
            raise Refusal(f"'{wrong_way.name}' is {done} elsewhere too, by '{weight.name}'")
        self.weights[weight] = None

    # -- operators through which a change goes -------------------------------------------------

    def _move(self, node: Node) -> None:
        data = node.data_input()
        if node.op != "Expand" and any(v in self.known for v in node.inputs[1:] if v is not None):
            raise self._refusal(node)  # it indexes with the value; Expand reads its size only
        if data.is_constant:
            (output,) = [v for v in node.outputs if v in self.known]
            change = moves.backward(self.graph, node, self.known[output], 0)
            self.constants[node, 0] = change
            return
        if data not in self.known:
            number = next((i for i, v in enumerate(node.outputs) if v in self.known), None)
            if number is None:
                return
            change = self.known[node.outputs[number]]
            self._set(data, moves.backward(self.graph, node, change, number, self.start.part))
        for number, value in enumerate(node.outputs):
            if value.uses or value in self.graph.outputs:
                self._agree(value, moves.forward(self.graph, node, self.known[data], number))

    def _agree(self, value: Value, change: ChannelMap) -> None:
        """``value`` has to change like this, which may be not at all."""
        if value in self.known or not change.is_neutral():
            self._set(value, change)

    def _sum(self, node: Node) -> None:
        """y = a + b or a - b: all change by the same A; what is new of a shift goes to a constant,
        to a weight's result, or to the first that there is."""
        signs = (1, -1 if node.op == "Sub" else 1)
        rank = len(_shape(node.output))
        operands = [node.data_input(i) for i in range(2)]
        parts = [_at_rank(self.known.get(v), rank) for v in operands]
        total = self.known.get(node.output)
        like = next(p for p in [total, *parts] if p is not None)
        if not all(p.has_linear_of(like) for p in [total, *parts] if p is not None):
            raise Refusal(f"{node.op} '{node.output.name}' adds up what changes in different ways")
        shift = sum(s * p.shift for s, p in zip(signs, parts, strict=True) if p is not None)
        rest = np.zeros((1,) * rank) if total is None else total.shift - shift
        open_ends = [i for i in range(2) if parts[i] is None]
        open_ends.sort(key=lambda i: self._preference(operands[i]))
        if open_ends and self.start.owed and not self._may_invert:
            raise Refusal(f"{node.op} '{node.output.name}' adds to it")
        for i in open_ends:
            part = like.with_shift(rest * signs[i]) if i == open_ends[0] else like.without_shift()
            part = _for_operand(part, operands[i], node)
            if operands[i].is_constant:
                self.constants[node, i] = part
            else:
                self._set(operands[i], part)
        if total is None:
            self._set(node.output, like.with_shift(np.asarray(shift)))
        elif not open_ends and not like.with_shift(np.asarray(shift)).is_same(total):
            raise Refusal(f"{node.op} '{node.output.name}' adds up what is shifted differently")

    def _preference(self, value: Value) -> int:
        if value.is_constant:
            return 0
        producer = value.producer
        return 1 if producer is not None and self.edits.weight_of(producer) is not None else 2

    def _concat(self, node: Node) -> None:
        axis = node.attributes["axis"]
        sizes = [_shape(node.data_input(i))[axis] for i in range(len(node.inputs))]
        places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        if node.output not in self.known:
            known = [
                (self.known[v], place)
                for v, place in zip(node.inputs, places, strict=True)
                if v in self.known
            ]
            self._set(node.output, joined(known, axis, sum(sizes), node))
        total = self.known[node.output]
        for number, place in enumerate(places):
            part, value = section(total, axis, place, node).compact(), node.data_input(number)
            if not value.is_constant:
                self._agree(value, part)
            elif not part.is_neutral():
                self.constants[node, number] = part

    def _multiple(self, node: Node) -> None:
        """y = c x with a constant c."""
        index, factor = self._factor(node)
        x, y = node.data_input(index), node.output
        known = self.known.get(x) or self.known[y]
        if x.shape is None or x.shape != y.shape:
            raise Refusal(f"{node.op} '{y.name}' broadcasts its channels")
        factor = factor.reshape((1,) * (known.rank - factor.ndim) + factor.shape)
        if known.axis is not None and factor.shape[known.axis] > 1:
            raise self._refusal(node)
        if x not in self.known:
            if known.shifts and not np.all(factor):
                raise Refusal(f"{node.op} '{y.name}' multiplies it by 0")
            shift = known.shift / factor if known.shifts else known.shift
            self._set(x, known.with_shift(shift))
        self._set(y, self.known[x].with_shift(self.known[x].shift * factor))

    def _factor(self, node: Node) -> tuple[int, Array]:
        """Which input is the data, and what it is multiplied by."""
        if node.op == "Neg":
            return 0, np.array(-1.0)
        data = [i for i, v in enumerate(node.inputs) if v is not None and not v.is_constant]
        if len(data) != 1 or (node.op == "Div" and data != [0]):
            raise self._refusal(node)
        factor = self.edits.constant(node, 1 - data[0])
        return data[0], factor if node.op == "Mul" else 1 / factor

    # -- what absorbs it -----------------------------------------------------------------------

    def actions(self) -> list[Callable[[], None]]:
        found = [self._absorb(weight) for weight in self.weights]
        for (node, index), change in self.constants.items():
            found.append(partial(self.edits.change_constant, node, index, self._gained(change)))
        return found

    def _owed(self, change: ChannelMap) -> ChannelMap:
        return change if self.start.owed else change.inverted()

    def _gained(self, change: ChannelMap) -> ChannelMap:
        return change.inverted() if self.start.owed else change

    def _absorb(self, weight: Weight) -> Callable[[], None]:
        out, into = weight.sizes
        reads = writes = None
        if weight.input in self.known:
            change = self._owed(self.known[weight.input])
            reads = change.on(weight.axis, into)
            if reads is None:
                raise Refusal(f"'{weight.name}' multiplies along another axis")
            if weight.pads_with_zeros and change.shifts:
                raise Refusal(
                    f"the convolution '{weight.name}' pads with zeros, which a shift moves"
                )
        if weight.output in self.known:
            writes = self._gained(self.known[weight.output]).on(weight.output_axis, out)
            if writes is None:
                raise Refusal(f"'{weight.name}' writes its channels to another axis")
        if weight.groups > 1 and any(a and a.linear.ndim == 2 for a in (reads, writes)):
            raise Refusal(f"the convolution '{weight.name}' keeps groups of channels apart")
        seen = self.edits.variables(weight)
        if self._may_invert:
            seen = Variables.of(reads, writes, self.condition).after(seen)
            self._check(seen)
        return partial(self.edits.absorb, weight, reads, writes, seen)

    def _check(self, seen: Variables) -> None:
        """Refuses new variables that the model's precision does not hold."""
        if seen.condition > _CONDITION:
            found = f"its condition number comes to {seen.condition:.3g}"
            raise Refusal(f"{found}; above {_CONDITION:g}, rounding errors grow too much")
        largest = _largest(self.start.value)
        for size in (np.asarray(seen.reads), np.asarray(seen.writes)):
            if np.any(size > largest) or np.any(size < 1 / largest):
                found = f"scales would come to lie between {size.min():.3g} and {size.max():.3g}"
                raise Refusal(f"{found}, too far apart for {self.start.value.dtype}")


def _largest(value: Value) -> float:
    """The square root of what the dtype can hold: room for the values themselves."""
    dtype = value.dtype if value.dtype is not None else np.dtype(np.float32)
    return float(np.sqrt(float(ml_dtypes.finfo(dtype).max)))


def _at_rank(change: ChannelMap | None, rank: int) -> ChannelMap | None:
    while change is not None and change.rank < rank:
        change = with_axis(change, 0)
    return change


def _for_operand(change: ChannelMap, operand: Value, node: Node) -> ChannelMap:
    """The change of an operand that broadcasts against the result, or is a constant, which may
    gain axes."""
    if operand.is_constant:
        return change
    shape = _shape(operand)
    lead = change.rank - len(shape)
    sizes = (1,) * lead + shape
    if any(change.varies(a) and size == 1 < _shape(node.output)[a] for a, size in enumerate(sizes)):
        raise Refusal(f"{node.op} '{node.output.name}' broadcasts its channels")
    for _ in range(lead):
        change = without_axis(change, 0, node)
    return change


def _shape(value: Value) -> tuple[int, ...]:
    if value.shape is None:
        raise Refusal(f"'{value.name}' has no known shape")
    return value.shape
