"""What a linear map on channels, y = A x + t, does at each operator: one table, a row each.

``spread.py`` carries a map from value to value and asks the table at every operator on the way.
*Downward* means that the readers of a value have to apply the map; a weight that reads it takes
W' = W A. *Upward* means that its writers have to; a weight that writes it takes W' = A W. A map
with an inverse goes both ways, a *change of variables*: writers take A, readers A^-1.

At an operator a map goes through, is absorbed, or is not seen; or the operator reads sizes only. An
operator without a row refuses every map. ``rules_page`` gives the table as a page of the
documentation, which is written by ``python -m normswap.passes.algebra.rules > docs/rules.md``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normswap.field.duals import ratio
from normswap.graph.graph import Array, Node, Value
from normswap.norms.site import Site
from normswap.passes.algebra import moves
from normswap.passes.algebra.channel_map import (
    ChannelMap,
    joined,
    section,
    with_axis,
    without_axis,
)
from normswap.passes.algebra.moves import known_shape
from normswap.passes.algebra.place import Arithmetic, Maps, Place, Rule, Unseen
from normswap.passes.algebra.scales import is_scale, of_attention, of_product, of_sign
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal, called

SUM = Arithmetic((1, 1))
_ORTHOGONAL = 1e-9  # how far Q Q^T may be from 1 in float64
PRODUCT_OF_VALUES = "MatMul"
"""With two computed operands, the scores of an attention or the values that they weigh."""
TAKES_PART = frozenset({"Gather", "GatherND", "ReduceMean"})
"""Operators whose result stands for the tokens that they read: the class token, their mean."""
CONSTANT, ANY_OTHER = "a constant", "any other operator"
"""Rows that are about no operator of their own."""


# -- operators that move values --------------------------------------------------------------------


def _through(
    read: moves.MoveReader, says: str, refuses: str = "", reads_sizes: bool = False
) -> Rule:
    """A row of ``moves.py``; ``reads_sizes``: of all inputs but the first."""

    def maps(place: Place) -> Maps:
        node, data, known = place.node, place.node.data_input(), place.known
        if not reads_sizes and any(v in known for v in node.inputs[1:]):
            raise place.refusal()  # it indexes with the value
        number = next((i for i, v in enumerate(node.outputs) if v in known), None)
        change = known.get(data)
        if change is None:
            if number is None:
                return
            behind, part = known[node.outputs[number]], place.part and not data.is_constant
            change = read(place.graph, node, number).backward(behind, part, node)
            yield 0 if data.is_constant else data, change
            if data.is_constant:
                return
        for number, value in enumerate(node.outputs):
            if value.uses or value in place.graph.outputs:
                yield value, read(place.graph, node, number).ahead(change)

    return Rule(f"through: {says}", "through, the other way", refuses, maps=maps)


# -- sums, multiples, parts ------------------------------------------------------------------------


def _sum(arithmetic: Arithmetic) -> Rule:
    def maps(place: Place) -> Maps:
        node = place.node
        name = called(node)
        rank = len(known_shape(node.output))
        operands, signs = [node.data_input(i) for i in range(2)], arithmetic.signs
        parts = [_at_rank(place.known.get(v), rank) for v in operands]
        total = place.known.get(node.output)
        like = next(p for p in [total, *parts] if p is not None)
        if not all(p.has_linear_of(like) for p in [total, *parts] if p is not None):
            raise Refusal(f"{name} adds up what changes in different ways")
        shift = sum(s * p.shift for s, p in zip(signs, parts, strict=True) if p is not None)
        rest = np.zeros((1,) * rank) if total is None else total.shift - shift
        open_ends = [i for i in range(2) if parts[i] is None]
        open_ends.sort(key=lambda i: _preference(operands[i], place.edits))
        if open_ends and place.downward and not place.inverts:
            raise Refusal(f"{name} adds to it")
        for i in open_ends:
            part = like.with_shift(rest * signs[i]) if i == open_ends[0] else like.without_shift()
            part = _for_operand(part, operands[i], node)
            yield i if operands[i].is_constant else operands[i], part
        if total is None:
            yield node.output, like.with_shift(np.asanyarray(shift))
        elif not open_ends and not like.with_shift(np.asanyarray(shift)).is_same(total):
            raise Refusal(f"{name} adds up what is shifted differently")

    return Rule(
        downward="through where both operands have the same A; their t add up",
        upward="through: A to both operands; t to one of them, if possible to a constant, else to "
        "the result of a weight",
        both="through: A to operands and result alike; what is new of t as upward",
        refuses="operands with different A; downward, an operand without a map; an operand that "
        "broadcasts its channels",
        maps=maps,
        arithmetic=arithmetic,
    )


def _preference(value: Value, edits: WeightEdits) -> int:
    if value.is_constant:
        return 0
    producer = value.producer
    return 1 if producer is not None and edits.weight_of(producer) is not None else 2


def _at_rank(change: ChannelMap | None, rank: int) -> ChannelMap | None:
    while change is not None and change.rank < rank:
        change = with_axis(change, 0)
    return change


def _for_operand(change: ChannelMap, operand: Value, node: Node) -> ChannelMap:
    """The map of an operand that broadcasts against the result, or is a constant, which may gain
    axes."""
    if operand.is_constant:
        return change
    shape, whole = known_shape(operand), known_shape(node.output)
    lead = change.rank - len(shape)
    sizes = (1,) * lead + shape
    if any(change.varies(a) and size == 1 < whole[a] for a, size in enumerate(sizes)):
        raise Refusal(f"{called(node)} broadcasts its channels")
    for _ in range(lead):
        change = without_axis(change, 0, node)
    return change


def _multiple(arithmetic: Arithmetic, refuses: str, joins: bool = False) -> Rule:
    """y = c x with a constant c."""

    def maps(place: Place) -> Maps:
        node, (index, factor) = place.node, _factor(place, arithmetic)
        x, y = node.data_input(index), node.output
        known = place.known.get(x) or place.known[y]
        if x.shape is None or x.shape != y.shape:
            raise Refusal(f"{called(node)} broadcasts its channels")
        factor = factor.reshape((1,) * (known.rank - factor.ndim) + factor.shape)
        if known.axis is not None and factor.shape[known.axis] > 1:
            raise place.refusal()
        if x not in place.known:
            if known.shifts and not np.all(factor):
                raise Refusal(f"{called(node)} multiplies it by 0")
            known = known.with_shift(known.shift / factor if known.shifts else known.shift)
            known = known.compact()
            yield x, known
        yield y, known.with_shift(known.shift * factor)

    def joining(place: Place) -> tuple[Value, ChannelMap] | None:
        """LayerScale under a matrix P: the writer takes P diag(c), and the product goes."""
        data, known = place.node.dynamic_inputs(), place.known.get(place.node.output)
        if known is None or len(data) != 1 or data[0].shape != place.node.output.shape:
            return None
        factor = _factor(place, arithmetic)[1]
        sizes = (1,) * (known.rank - factor.ndim) + factor.shape
        if [axis for axis, size in enumerate(sizes) if size > 1] != [known.axis]:
            return None
        linear = known.linear * factor.reshape(-1)  # of the columns, which are behind all axes
        return data[0], ChannelMap(linear, known.shift, axis=known.axis)

    joined = "; if a pass asks for it, A diag(c) goes into the writer and the product is gone"
    return Rule(
        downward="through: the same A, and c t",
        upward="through: the same A, and t / c" + joined * joins,
        refuses=refuses,
        maps=maps,
        joins=joining if joins else None,
        arithmetic=arithmetic,
    )


def _factor(place: Place, arithmetic: Arithmetic) -> tuple[int, Array]:
    """Which input is the data, and what it is multiplied by."""
    if arithmetic.factor is None:
        return 0, np.array(float(arithmetic.signs[0]))
    inputs = place.node.inputs
    data = [i for i, v in enumerate(inputs) if v is not None and not v.is_constant]
    if len(data) != 1 or data[0] >= len(arithmetic.signs):
        raise place.refusal()
    return data[0], arithmetic.factor(place.edits.constant(place.node, 1 - data[0]))


def _concat(place: Place) -> Maps:
    node, known = place.node, place.known
    axis = node.attributes["axis"]
    operands = [node.data_input(i) for i in range(len(node.inputs))]
    sizes = [known_shape(v)[axis] for v in operands]
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    total = known.get(node.output)
    if total is None:
        parts = [(known[v], at) for v, at in zip(operands, places, strict=True) if v in known]
        total = joined(parts, axis, sum(sizes), node).compact()
        yield node.output, total
    for number, (value, at) in enumerate(zip(operands, places, strict=True)):
        part = section(total, axis, at, node).compact()
        if not value.is_constant:
            yield value, part
        elif not part.is_neutral():
            yield number, part


# -- what absorbs a map, does not see it, or reads sizes only --------------------------------------


def _absorbs(refuses: str) -> Rule:
    return Rule(
        downward="absorbs it: W' = W A, b' = b + W t",
        upward="absorbs it: W' = A W, b' = A b + t; one without a bias gains it",
        both="absorbs it, A as a writer and A^-1 as a reader",
        refuses="a map without an inverse that reaches its other side too; " + refuses,
    )


def mean_subtraction(size: int, axis: int, rank: int) -> ChannelMap:
    """P = I - 1 1^T / C along ``axis``."""
    return ChannelMap.along(np.eye(size) - ratio(1, size), np.zeros(size), axis, rank)


def _is_mean_subtraction(change: ChannelMap, site: Site) -> bool:
    mean = mean_subtraction(site.normalized_shape[0], site.axes[0], change.rank)
    return change.is_same(mean)


MEAN = Unseen("P = I - 1 1^T / C, which subtracts the mean", _is_mean_subtraction)
SCALE = Unseen(
    "a scale s > 0 of all channels alike, which leaves epsilon / s^2 to the pass",
    lambda change, site: is_scale(change),
)


def rotation(matrix: Array, axis: int, rank: int) -> ChannelMap:
    """y = Q x along ``axis``, for an orthogonal ``matrix`` Q [C, C]; Q^T undoes it."""
    forward, back = (ChannelMap.along(m, np.zeros(len(m)), axis, rank) for m in (matrix, matrix.T))
    return replace(forward, inverse=back.linear)


def _is_rotation(change: ChannelMap, site: Site) -> bool:
    """Whether the norm of what it turns is what it makes of the norm."""
    size, axis = site.normalized_shape[0], site.axes[0]
    weight = np.ones(size) if site.weight is None else site.weight
    if np.any(weight != weight[0]) or (site.bias is not None and np.any(site.bias)):
        return False
    found = None if change.shifts or change.axis != axis else change.on(axis, size)
    if found is None:
        return False
    return bool(np.abs(found.linear @ found.linear.T - np.eye(size)).max() < _ORTHOGONAL)


ROTATION = Unseen(
    "an orthogonal matrix Q, which goes on behind it, if its weight is alike for all channels and "
    "it has no bias",
    _is_rotation,
    commutes=True,
)


def _does_not_see(*unseen: Unseen) -> Rule:
    return Rule(
        downward="does not see, if a pass asks for it, " + "; ".join(u.says for u in unseen),
        upward="such a map is left to the pass, which applies it behind the norm",
        refuses="any other map; any map, if it is over several axes, of unknown shape, or spelled "
        "with values that are read elsewhere",
        unseen=unseen,
    )


def _of_sizes(place: Place) -> Maps:
    if any(v in place.known for v in place.node.outputs):
        raise place.refusal()
    return iter(())


# -- the table -------------------------------------------------------------------------------------

_SPLITS = "channels that do not stay whole"
_ON_ITS_AXES = "a map that varies along the axes that it works on"
_COMPUTED = "; a map that varies along an axis of which it takes what is computed"
_BY_CONSTANT = (
    "an operand that broadcasts its channels; a full matrix along whose axis the constant varies; "
    "upward, t where the constant is 0"
)
_BY_MATRIX = "a computed matrix; a map along another axis than that of its matrix"

RULES: dict[str, Rule] = {
    "Linear": _absorbs(_BY_MATRIX),
    "MatMul": replace(
        _absorbs(
            f"{_BY_MATRIX}; of two computed operands, all but a scale s > 0 of one of them, "
            "which goes through, alike for all channels"
        ),
        maps=of_product,
    ),
    "Gemm": _absorbs(_BY_MATRIX),
    "Conv": _absorbs(
        "a computed kernel; a map along another axis than 1; downward, t where it pads with zeros; "
        "a full matrix where its channels are in groups"
    ),
    "ConvTranspose": _absorbs(
        "a computed kernel; a map along another axis than 1; downward, t unless its kernel is of "
        "size 1 and adds no positions; a full matrix where its channels are in groups"
    ),
    CONSTANT: Rule(
        downward="-",
        upward="absorbs it: c' = A c + t (class tokens, positions, tables of embeddings)",
        both="as upward",
        refuses="",
    ),
    "Add": _sum(SUM),
    "Sub": _sum(Arithmetic((1, -1))),
    "Mul": _multiple(
        Arithmetic((1, 1), lambda c: c), f"two computed operands; {_BY_CONSTANT}", joins=True
    ),
    "Div": _multiple(Arithmetic((1,), lambda c: 1 / c), f"a computed divisor; {_BY_CONSTANT}"),
    "Neg": _multiple(Arithmetic((-1,)), "an operand of unknown shape"),
    "Concat": Rule(
        downward="through: the maps of its operands, put together; the others have none",
        upward="through: each operand has its part of the map",
        refuses="a full matrix that mixes operands; along the axis on which they are put together, "
        "operands of which some have inverses and some have none",
        maps=_concat,
    ),
    "Identity": _through(moves.same, "the same map"),
    "Cast": _through(
        moves.cast,
        "the same map",
        "a type that is not floating-point; into a narrower one, unless such a type held before "
        "what it is to hold, or the pass knows a bound",
    ),
    "Dropout": _through(moves.dropout, "the same map", "training mode"),
    "Transpose": _through(moves.transpose, "its axes in the new order"),
    "Reshape": _through(moves.reshape, "its axes split and merge", _SPLITS, reads_sizes=True),
    "Flatten": _through(moves.reshape, "its axes split and merge", _SPLITS),
    "Squeeze": _through(moves.reshape, "its axes split and merge", _SPLITS),
    "Unsqueeze": _through(moves.reshape, "its axes split and merge", _SPLITS),
    "Slice": _through(
        moves.slices, "on other axes the same; of the channels, those taken", _SPLITS + _COMPUTED
    ),
    "Gather": _through(
        moves.gather,
        "on other axes the same; of the channels, those taken",
        f"{_SPLITS}{_COMPUTED}; a channel that is taken twice",
    ),
    "Split": _through(moves.split, "on other axes the same; of the channels, its part", _SPLITS),
    "GatherND": _through(
        moves.gather_nd, "the same on the axes that it does not index", _ON_ITS_AXES
    ),
    "Expand": _through(
        moves.expand,
        "the same, with the new axes",
        "upward, a map that varies along a stretched axis",
        reads_sizes=True,
    ),
    "Tile": _through(moves.tile, "the same on other axes", _ON_ITS_AXES),
    "aten.roll.default": _through(moves.roll, "the same on other axes", _ON_ITS_AXES),
    "aten.flip.default": _through(moves.roll, "the same on other axes", _ON_ITS_AXES),
    "Resize": _through(
        moves.resize,
        "the same on axes that keep their size",
        f"values filled in (tf_crop_and_resize); t where ONNX's is cubic; {_ON_ITS_AXES}",
        reads_sizes=True,
    ),
    "Upsample": _through(moves.resize, "the same on axes that keep their size", _ON_ITS_AXES),
    **{
        f"aten.adaptive_avg_pool{n}d.default": _through(
            moves.resize, "the same on axes that keep their size", _ON_ITS_AXES
        )
        for n in (1, 2, 3)
    },
    "ReduceMean": _through(moves.mean, "the same on other axes", _ON_ITS_AXES),
    "ReduceSum": _through(moves.total, "the same on other axes", f"t; {_ON_ITS_AXES}"),
    "GlobalAveragePool": _through(moves.average_of_all, "the same on other axes", _ON_ITS_AXES),
    "AveragePool": _through(
        moves.average_of_neighbours,
        "the same on other axes",
        f"t where it counts zeros that it pads with; {_ON_ITS_AXES}",
    ),
    "Pad": _through(
        moves.pad,
        "the same on other axes",
        f"t where it pads with zeros; another constant; {_ON_ITS_AXES}",
    ),
    **dict.fromkeys(
        ("Relu", "LeakyRelu"),
        Rule(
            downward="through: diag(s) with all s > 0",
            upward="through: diag(s) with all s > 0",
            refuses="any other map",
            maps=of_sign,
        ),
    ),
    "Attention": Rule(
        downward="through, from its values: a scale s > 0 of all channels alike",
        upward="through, to its values: a scale s > 0 of all channels alike",
        refuses="any other map; a map of its queries, keys or mask",
        maps=of_attention,
    ),
    "Shape": Rule("reads sizes only", "-", "", "reads sizes only", _of_sizes),
    "layer_norm": _does_not_see(MEAN, SCALE),
    "rms_norm": _does_not_see(SCALE, ROTATION),
    ANY_OTHER: Rule("refuses", "refuses", "every map", "refuses"),
}
"""By operator; a norm by its ``Site.kind``, however it is spelled."""


def rule_of(name: str) -> Rule:
    """The row of an operator or of a kind of norm."""
    return RULES.get(name, RULES[ANY_OTHER])


# -- the page --------------------------------------------------------------------------------------

_HEAD = """\
# What a linear map does at each operator

Generated from the table in `normswap/passes/algebra/rules.py` by
`python -m normswap.passes.algebra.rules > docs/rules.md`.

The exact passes move a map on channels, y = A x + t, through the graph until weights absorb it.
A is diag(s) or a full matrix. Rows are operators by their names in ONNX, and norms (`layer_norm`)
however they are spelled.

* *Downward*: the readers of a value have to apply the map.
* *Upward*: the writers of a value have to apply it.
* *Change of variables*: a map with an inverse goes both ways through a whole stream. What writes to
  the stream applies A and t, what reads it undoes them.

Inputs and outputs of the model refuse every map. So does a weight whose changes of variables come
to a condition number above 10 (full matrices), or to scales that the model's dtype does not hold.
Nothing is edited before all of a change is known to be absorbed.

"""


def rules_page() -> str:
    """The table in Markdown; operators of which it says the same share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, rule in RULES.items():
        words = (rule.downward, rule.upward, rule.both, rule.refuses or "-")
        rows.setdefault(words, []).append(name if name in (CONSTANT, ANY_OTHER) else f"`{name}`")
    head = ("operator", "downward (a reader)", "upward (a writer)", "change of variables")
    lines: list[tuple[str, ...]] = [(*head, "refuses"), ("---",) * 5]
    lines += [(", ".join(names), *words) for words, names in rows.items()]
    return _HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(rules_page(), end="")
