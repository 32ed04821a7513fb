"""What each operator computes over the field.

Rational operators, products, means, variances and norms are computed by their definitions.
Operators that move, copy or pick elements are run once on the numbers of the elements' places,
which tells where each element of the result comes from. An operator on whole numbers (token ids,
sizes, masks) is run as it is. All others are uninterpreted functions: of each element, of a row, or
of everything that they read. The table of operators (``graph/operators.py``) says which is which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from normswap.field.residues import BITS, fits, split
from normswap.field.values import Exact, Field
from normswap.graph.graph import Array, Graph, Node, Runner, Value, is_floating

_OPERANDS = re.compile(r"%\d+")
Read = Exact | Array | None
_PLACE = float(1 << 40)
_WINDOW, _WHOLE = 18, 52
_CUBE = 8  # the highest power that is multiplied out


class Uncovered(Exception):
    """What cannot be computed over the field; the message says why."""


class At:
    """One node, with what it reads: ``inputs`` as the node has them, ``wanted`` the places of the
    outputs that somebody reads."""

    def __init__(
        self, field: Field, graph: Graph, node: Node, inputs: Sequence[Read], wanted: Sequence[int]
    ) -> None:
        self.field, self.graph, self.node = field, graph, node
        self.inputs, self.wanted = list(inputs), list(wanted)
        self.uninterpreted = ""

    @property
    def attributes(self) -> dict[str, Any]:
        return self.node.attributes

    @property
    def exact(self) -> list[Exact]:
        return [x for x in self.inputs if isinstance(x, Exact)]

    def __getitem__(self, index: int) -> Exact:
        """The input as a value over the field."""
        found = self.get(index)
        if found is None:
            raise Uncovered(f"{self.node.op} '{self.node.output.name}' lacks an input")
        return found

    def get(self, index: int) -> Exact | None:
        found = self.inputs[index] if index < len(self.inputs) else None
        return self.field.constant(found) if isinstance(found, np.ndarray) else found

    def runner(self) -> tuple[list[int], Runner]:
        """The node alone in float64: the places of the inputs that it is given, and how to run it
        on arrays for these; it gives the wanted outputs."""
        places: dict[Value, int] = {}
        for place, value in enumerate(self.node.inputs):
            if value is not None and self.inputs[place] is not None and _is_fed(value):
                places.setdefault(value, place)
        wanted = [self.node.outputs[i] for i in self.wanted]
        return list(places.values()), self.graph.slice(list(places), wanted, np.float64)

    def plain(self, arrays: dict[int, Array] | None = None) -> list[Array]:
        """The wanted outputs from shadows and whole numbers, with ``arrays`` in their places."""
        places, run = self.runner()
        reads = [self.inputs[place] for place in places]
        fed = [x.shadow if isinstance(x, Exact) else np.asarray(x) for x in reads]
        if arrays:
            fed = [arrays.get(place, array) for place, array in zip(places, fed, strict=True)]
        with np.errstate(all="ignore"):
            return [np.asarray(array) for array in run(fed)]

    def signature(self) -> str:
        """What tells functions of the same operator from each other."""
        found = self.graph.signature(self.node)
        if found is None:
            raise Uncovered(
                f"{self.node.op} '{self.node.output.name}' holds more than can be compared"
            )
        return f"{self.node.op} {found}"


def _is_fed(value: Value) -> bool:
    if value.is_constant:
        return value.dtype is not None and (is_floating(value.dtype) or value.dtype == bool)
    return True


Rule = Callable[[At], Sequence[Exact | None]]
_RULES: dict[str, Rule] = {}


_AnyRule = TypeVar("_AnyRule", bound=Rule)


def rule_for(name: str) -> Callable[[_AnyRule], _AnyRule]:
    """Makes a function the rule of an operator."""

    def register(rule: _AnyRule) -> _AnyRule:
        _RULES[name] = rule
        return rule

    return register


def compute(at: At) -> list[Read]:
    """The outputs of a node, None for those that nobody wants. Raises Uncovered."""
    node, known = at.node, at.node.operator
    if known.random:
        raise Uncovered(f"{node.op} '{node.output.name}' is random")
    if not at.exact:
        return _placed(at, [_as_read(at.field, array) for array in at.plain()])
    if not any(_is_real(node.outputs[i]) for i in at.wanted):
        return _decision(at)
    rule = _RULES.get(node.op) or _rule_of_kind(at)
    if rule is not None:
        found = rule(at)
        if found:
            return [*found, *[None] * (len(node.outputs) - len(found))]
    return _opaque(at)


def _rule_of_kind(at: At) -> Rule | None:
    known = at.node.operator
    if known.normalises and not known.beside:
        return _norm
    if known.attention:
        return _softmax if known.attention == "softmax" else _attention
    if known.product:
        return _bilinear
    if (statistic := known.statistic or known.pool) in _STATISTICS:
        return _STATISTICS[statistic]
    if known.activation and len(at.node.dynamic_inputs()) == 1:
        return _elementwise
    if known.move or known.selects:
        return _moved
    return None


def _is_real(value: Value) -> bool:
    return value.dtype is None or is_floating(value.dtype)


def _as_read(field: Field, array: Array) -> Read:
    return field.constant(array) if is_floating(array.dtype) else array


def _placed(at: At, found: Sequence[Read]) -> list[Read]:
    by_place = dict(zip(at.wanted, found, strict=True))
    return [by_place.get(i) for i in range(len(at.node.outputs))]


def _decision(at: At) -> list[Read]:
    """Whole numbers made of real ones: they may not depend on what is drawn."""
    fixed = all(x.growth.degree == 0 and x.growth.inverses == 0 for x in at.exact)
    no_number = at.node.op == "IsNaN" or "isnan" in at.node.op  # which no real number is
    if fixed or no_number or at.node.operator.reads_sizes_only:
        return _placed(at, list(at.plain()))
    op, name = at.node.op, at.node.output.name
    raise Uncovered(f"{op} '{name}' decides by computed numbers")


def _opaque(at: At) -> list[Read]:
    """A function of everything that the node reads."""
    if at.node.operator.control_flow:
        raise Uncovered(f"{at.node.op} '{at.node.output.name}' runs bodies of other operators")
    at.uninterpreted = at.node.op
    arguments = [x for x in at.inputs if x is not None]
    name, found = at.signature(), []
    for place, array in zip(at.wanted, at.plain(), strict=True):
        if not is_floating(array.dtype):
            raise Uncovered(f"{at.node.op} '{at.node.output.name}' decides by computed numbers")
        found.append(at.field.opaque(name, array, arguments, place))
    return _placed(at, found)


# -- arithmetic ------------------------------------------------------------------------------------


@rule_for("Add")
def _add(at: At) -> Sequence[Exact]:
    return [at.field.add(at[0], at[1])]


@rule_for("Sub")
def _sub(at: At) -> Sequence[Exact]:
    return [at.field.subtract(at[0], at[1])]


@rule_for("Mul")
def _mul(at: At) -> Sequence[Exact]:
    return [at.field.multiply(at[0], at[1])]


@rule_for("Div")
def _div(at: At) -> Sequence[Exact]:
    return [at.field.divide(at[0], at[1])]


@rule_for("Neg")
def _neg(at: At) -> Sequence[Exact]:
    return [at.field.negative(at[0])]


@rule_for("Sum")
def _sum(at: At) -> list[Exact]:
    total = at[0]
    for index in range(1, len(at.inputs)):
        total = at.field.add(total, at[index])
    return [total]


@rule_for("Mean")
def _mean_of_many(at: At) -> Sequence[Exact]:
    return [at.field.over(_sum(at)[0], len(at.inputs))]


@rule_for("Reciprocal")
def _reciprocal(at: At) -> Sequence[Exact]:
    return [at.field.reciprocal(at[0])]


@rule_for("Sqrt")
def _sqrt(at: At) -> Sequence[Exact]:
    return [at.field.root(at[0])]


@rule_for("Rsqrt")
def _rsqrt(at: At) -> Sequence[Exact]:
    return [at.field.inverse_root(at[0])]


@rule_for("Pow")
def _pow(at: At) -> Sequence[Exact | None]:
    x, given = at[0], at[1]
    exponent = float(given.shadow.reshape(-1)[0]) if given.shadow.size == 1 else np.nan
    if given.growth.degree == 0 and exponent == 0.5:
        found = at.field.root(x)
    elif given.growth.degree == 0 and exponent == -0.5:
        found = at.field.inverse_root(x)
    elif (
        given.growth.degree == 0
        and exponent == int(exponent or 0.5)
        and 1 <= abs(exponent) <= _CUBE
    ):
        found = x
        for _ in range(int(abs(exponent)) - 1):
            found = at.field.multiply(found, x)
        found = at.field.reciprocal(found) if exponent < 0 else found
    else:
        return _elementwise(at)
    shape = np.broadcast_shapes(found.shape, given.shape)
    return [found if shape == found.shape else found.reshaped(shape)]


@rule_for("Relu")
def _relu(at: At) -> Sequence[Exact]:
    at.uninterpreted = at.node.op
    return [at.field.signed("relu", np.maximum(at[0].shadow, 0), at[0])]


@rule_for("Abs")
def _abs(at: At) -> Sequence[Exact]:
    at.uninterpreted = at.node.op
    return [at.field.signed("magnitude", np.abs(at[0].shadow), at[0])]


@rule_for("LeakyRelu")
def _leaky_relu(at: At) -> Sequence[Exact]:
    at.uninterpreted = at.node.op
    return [at.field.signed(at.signature(), at.plain()[0], at[0])]


@rule_for("Max")
@rule_for("Min")
@rule_for("Clip")
@rule_for("Erf")
@rule_for("Exp")
@rule_for("Log")
@rule_for("Sin")
@rule_for("Cos")
def _elementwise(at: At) -> list[Exact]:
    """An uninterpreted function of each element."""
    at.uninterpreted = at.node.op
    arguments = [at[i] for i, x in enumerate(at.inputs) if x is not None]
    (shadow,) = at.plain()
    shape = np.broadcast_shapes(*(a.shape for a in arguments))
    if len(at.wanted) != 1 or shape != shadow.shape:
        return []
    return [at.field.function(_plain_name(at), shadow, *arguments)]


def _plain_name(at: At) -> str:
    """The operator alone where it has no attributes, so that both kinds of graph agree."""
    return at.node.op if _has_no_options(at) else at.signature()


def _has_no_options(at: At) -> bool:
    found = at.graph.signature(at.node)
    if not isinstance(found, tuple) or at.attributes:
        return False
    return not re.search(r"[0-9.]+|None", _OPERANDS.sub("", repr(found[1:])))


@rule_for("Cast")
def _cast(at: At) -> list[Exact]:
    return [at[0]]


@rule_for("Identity")
@rule_for("Dropout")
def _same(at: At) -> Sequence[Exact]:
    return _cast(at) if not at.attributes.get("training_mode") and len(at.wanted) == 1 else []


# -- products --------------------------------------------------------------------------------------


@rule_for("Linear")
def _linear(at: At) -> Sequence[Exact]:
    weight = at[1]
    if len(weight.shape) == 1:
        return []
    return [_biased(at.field, at.field.matmul(at[0], weight.transposed((1, 0))), at.get(2))]


def _biased(field: Field, product: Exact, bias: Exact | None) -> Exact:
    return product if bias is None else field.add(product, bias)


@rule_for("MatMul")
def _matmul(at: At) -> Sequence[Exact]:
    return [at.field.matmul(at[0], at[1])]


@rule_for("Gemm")
def _gemm(at: At) -> Sequence[Exact]:
    a, b = (
        x.transposed((1, 0)) if at.attributes[flag] else x
        for x, flag in ((at[0], "transA"), (at[1], "transB"))
    )
    product = at.field.scaled(at.field.matmul(a, b), at.attributes["alpha"])
    bias = at.get(2)
    return [_biased(at.field, product, bias and at.field.scaled(bias, at.attributes["beta"]))]


def _bilinear(at: At) -> Sequence[Exact]:
    """A product of its first two inputs by the operator itself, on halves of the second."""
    field, (x, w) = at.field, (at[0], at[1])
    if len(at.wanted) != 1 or x.growth is None or any(i is None for i in at.inputs[:2]):
        return []
    convolves = at.node.operator.product == "convolution"
    if convolves and at.node.operator.name != at.node.op:
        return []  # one of unknown arguments
    if not convolves and len(at.inputs) != 2:
        return []
    length = int(np.prod(w.shape[1:])) if convolves else min(x.shadow.size, w.shadow.size)
    length = (
        max(length, int(np.prod(w.shape)) // max(w.shape[1], 1))
        if at.node.op == "ConvTranspose"
        else length
    )
    if not fits(length):
        return []
    bias = at.get(2) if convolves else None
    places, run = at.runner()
    nothing = {2: np.zeros(bias.shape)} if bias is not None else {}

    def product(a: Array, b: Array) -> Array:
        given = {0: a, 1: b} | nothing
        if at.node.inputs[0] is at.node.inputs[1]:
            raise Uncovered(f"{at.node.op} '{at.node.output.name}' multiplies a value by itself")
        return np.asarray(run([given[place] for place in places])[0], np.float64)

    def modulo(j: int) -> Array:
        left, (high, low) = x.residue(j), split(w.residue(j))
        return field.residues.joined(product(left, high), product(left, low), j)

    growth = (x.growth * w.growth).summed(length)
    found = Exact(product(x.shadow, w.shadow), field.residues.each(modulo), growth)
    if bias is not None:
        bias = bias.reshaped((-1, *(1,) * (len(found.shape) - 2)))
    return [_biased(field, found, bias)]


# -- statistics ------------------------------------------------------------------------------------


def _axes(at: At, x: Exact) -> tuple[tuple[int, ...], bool]:
    """The axes of a reduction, and whether they are kept."""
    axes = at.attributes.get("axes")
    if axes is None and at.node.op.startswith("Global"):
        axes = range(2, len(x.shape))
    if axes is None:
        if len(at.inputs) > 1:
            raise Uncovered(f"{at.node.op} '{at.node.output.name}' computes its axes")
        axes = range(len(x.shape))
        axes = () if at.attributes.get("noop_with_empty_axes") else axes
    rank = len(x.shape)
    return tuple(sorted(axis % rank for axis in axes)), bool(at.attributes.get("keepdims", 1))


def _reduced(at: At, total: Callable[[Exact, tuple[int, ...], bool], Exact]) -> Sequence[Exact]:
    axes, keep = _axes(at, at[0])
    return [total(at[0], axes, keep)]


def _mean(at: At) -> Sequence[Exact]:
    if "resized" in at.attributes:
        return _mean_of_parts(at)
    if at.node.operator.pool == "local mean":
        return _mean_of_windows(at)
    return _reduced(at, at.field.mean)


def _mean_of_parts(at: At) -> Sequence[Exact]:
    """Axes are cut into parts of one size."""
    x, after = at[0], at.plain()[0].shape
    sizes, axes = [], []
    for axis, (size, kept) in enumerate(zip(x.shape, after, strict=True)):
        if axis not in at.attributes["resized"]:
            sizes.append(size)
        elif size % kept:
            return []
        else:
            axes.append(len(sizes) + 1)
            sizes += [kept, size // kept]
    return [at.field.mean(x.reshaped(tuple(sizes)), tuple(axes), keepdims=False)]


def _mean_of_windows(at: At) -> Sequence[Exact]:
    """The mean of whole numbers in float64, times what all numbers of terms divide, is whole."""
    x, known = at[0], at.attributes
    count = int(np.prod(known.get("kernel_shape") or (0,)))
    same = not any(known.get("pads") or ()) and not known.get("ceil_mode")
    same = same and known.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    multiple = count if same else math.lcm(*range(1, count + 1)) if count <= _WINDOW else 0
    if not 0 < multiple < 1 << _WHOLE - BITS or len(at.wanted) != 1:
        return []

    def modulo(j: int) -> Array:
        return np.rint(at.plain({0: x.residue(j)})[0] * multiple)

    total = Exact(
        at.plain()[0] * multiple, at.field.residues.each(modulo), x.growth.summed(count * multiple)
    )
    return [at.field.over(total, multiple)]


def _total(at: At) -> Sequence[Exact]:
    return _reduced(at, at.field.total)


def _squares(at: At) -> Sequence[Exact]:
    def total(x: Exact, axes: tuple[int, ...], keep: bool) -> Exact:
        return at.field.total(at.field.multiply(x, x), axes, keep)

    return _reduced(at, total)


def _l2_norm(at: At) -> Sequence[Exact]:
    if at.node.op == "LpNormalization":
        x, axis = at[0], at.attributes.get("axis", -1)
        if at.attributes.get("p", 2) != 2:
            return []
        squares = at.field.total(at.field.multiply(x, x), (axis % len(x.shape),))
        return [at.field.multiply(x, at.field.inverse_root(squares))]
    return [at.field.root(_squares(at)[0])]


def _variance(at: At) -> Sequence[Exact]:
    x, correction = at[0], at.attributes.get("correction")
    if correction is None:
        return []
    axes, keep = _axes(at, x)
    mean = at.field.mean(x, axes)
    d = at.field.subtract(x, mean)
    count = int(np.prod([x.shape[a] for a in axes])) - correction
    if count <= 0 or count != int(count):
        return []
    found = at.field.over(at.field.total(at.field.multiply(d, d), axes), int(count))
    found = at.field.root(found) if at.node.operator.statistic == "deviation" else found
    results = [found, mean][: len(at.node.outputs)]
    if keep:
        return results
    shape = tuple(size for a, size in enumerate(x.shape) if a not in axes)
    return [r.reshaped(shape) for r in results]


def _extreme(at: At) -> Sequence[Exact]:
    at.uninterpreted = at.node.op
    x = at[0]
    axes, keep = _axes(at, x)
    function = {"maximum": np.max}.get(at.node.operator.statistic)
    if function is None:
        return []
    shadow = function(x.shadow, axis=axes, keepdims=True)
    found = at.field.rows("maximum", shadow, x, axes, reduces=True)
    shape = found.shape if keep else tuple(s for a, s in enumerate(x.shape) if a not in axes)
    return [found.reshaped(shape)]


_STATISTICS: dict[str, Rule] = {
    "mean": _mean,
    "sum": _total,
    "sum of squares": _squares,
    "L2 norm": _l2_norm,
    "variance": _variance,
    "deviation": _variance,
    "maximum": _extreme,
}


# -- norms -----------------------------------------------------------------------------------------


def _epsilon(at: At) -> Exact:
    number = at.graph.as_attribute(at.attributes["epsilon"])
    return at.field.constant(np.asarray(number, np.float64))


def _affine(
    field: Field,
    x: Exact,
    weight: Exact | None,
    bias: Exact | None,
    shape: tuple[int, ...] | None = None,
) -> Exact:
    if weight is not None:
        x = field.multiply(x, weight if shape is None else weight.reshaped(shape))
    return x if bias is None else field.add(x, bias if shape is None else bias.reshaped(shape))


def _normed(
    at: At, x: Exact, axes: tuple[int, ...], centred: bool
) -> tuple[Exact, Exact | None, Exact]:
    field, mean = at.field, None
    if centred:
        mean = field.mean(x, axes)
        x = field.subtract(x, mean)
    variance = field.mean(field.multiply(x, x), axes)
    inverse = field.inverse_root(field.add(variance, _epsilon(at)))
    return field.multiply(x, inverse), mean, inverse


def _norm(at: At) -> Sequence[Exact | None]:
    known, field = at.node.operator, at.field
    if known.norm_with_sum:
        return _norm_of_sum(at)
    x, weight, bias = at[0], at.get(known.scale), at.get(known.scale + 1)
    if known.norm in ("layer_norm", "rms_norm"):
        axes = tuple(range(at.attributes["axis"] % len(x.shape), len(x.shape)))
        found, mean, inverse = _normed(at, x, axes, known.norm == "layer_norm")
        rest = [mean, inverse] if mean is not None else [inverse]
        return [_affine(field, found, weight, bias), *rest][: len(at.node.outputs)]
    channels = (-1, *(1,) * (len(x.shape) - 2))
    if known.norm == "batch_norm":
        if (
            at.attributes.get("training_mode")
            or at.attributes.get("spatial", 1) != 1
            or len(at.wanted) != 1
        ):
            return []
        inverse = field.inverse_root(field.add(at[4], _epsilon(at)))
        x = field.subtract(x, at[3].reshaped(_full(channels, at[3])))
        x = field.multiply(x, inverse.reshaped(_full(channels, inverse)))
    elif known.norm == "instance_norm":
        x = _normed(at, x, tuple(range(2, len(x.shape))), True)[0]
    else:
        shape, groups = x.shape, int(at.attributes["num_groups"])
        grouped = x.reshaped((shape[0], groups, x.shadow.size // (shape[0] * groups)))
        x = _normed(at, grouped, (2,), True)[0].reshaped(shape)
        if weight is not None and weight.shape == (groups,) and shape[1] != groups:
            weight, bias = (
                p and p.moved(lambda a: np.repeat(a, shape[1] // groups)) for p in (weight, bias)
            )
    weight, bias = (p and p.reshaped(_full(channels, p)) for p in (weight, bias))
    return [_affine(field, x, weight, bias)]


def _full(channels: tuple[int, ...], value: Exact) -> tuple[int, ...]:
    return (value.shadow.size, *channels[1:])


def _norm_of_sum(at: At) -> Sequence[Exact | None]:
    known, field = at.node.operator, at.field
    if known.scale != 2 or known.norm_with_sum not in ("layer_norm", "rms_norm"):
        return []
    total, centred = field.add(at[0], at[1]), known.norm_with_sum == "layer_norm"
    beta, extra = (at.get(3), at.get(4)) if centred else (None, at.get(3))
    total = total if extra is None else field.add(total, extra)
    found = _normed(at, total, (len(total.shape) - 1,), centred)[0]
    results: list[Exact | None] = [None] * len(at.node.outputs)
    results[0] = _affine(field, found, at[2], beta)
    if len(results) > known.sum_output:
        results[known.sum_output] = total
    return results


# -- attention -------------------------------------------------------------------------------------


def _softmax(at: At) -> Sequence[Exact]:
    at.uninterpreted = "Softmax"
    x, axis = at[0], at.attributes.get("axis")
    if axis is None or at.node.op != "Softmax":
        return []
    return [_softmaxed(at.field, x, axis % len(x.shape))]


def _softmaxed(field: Field, x: Exact, axis: int) -> Exact:
    with np.errstate(all="ignore"):
        powers = np.exp(x.shadow - x.shadow.max(axis, keepdims=True))
        shadow = powers / powers.sum(axis, keepdims=True)
    return field.rows("softmax", shadow, x, (axis,), reduces=False)


def _attention(at: At) -> Sequence[Exact]:
    """softmax(scale q k^T + mask) v, of the plain sort; others are uninterpreted as a whole."""
    known = at.attributes
    if (
        "is_causal" not in known
        or len(at.wanted) > 1
        or known.get("softcap")
        or any(x is not None for x in at.inputs[4:])
    ):
        return []
    query, key, value, mask = at[0], at[1], at[2], (at.inputs[3] if len(at.inputs) > 3 else None)
    if (
        not len(query.shape) == len(key.shape) == len(value.shape) != 3
        or query.shape[:-2] != key.shape[:-2]
    ):
        return []
    if set(known) & {"qk_matmul_output_mode", "q_num_heads"} and known.get("qk_matmul_output_mode"):
        return []
    at.uninterpreted = "Softmax"
    field, rank = at.field, len(query.shape)
    turned = (*range(rank - 2), rank - 1, rank - 2)
    logits = field.matmul(query, key.transposed(turned))
    if known.get("scale"):
        logits = field.scaled(logits, known["scale"])
    else:
        size = field.constant(np.asarray(query.shape[-1], np.float64))
        logits = field.multiply(logits, field.inverse_root(size))
    if known["is_causal"]:
        logits = _masked(field, logits, np.tri(*logits.shape[-2:], dtype=bool))
    if isinstance(mask, Exact):
        logits = field.add(logits, mask)
    elif mask is not None:
        logits = _masked(field, logits, np.asarray(mask, bool))
    return [field.matmul(_softmaxed(field, logits, rank - 1), value)]


def _masked(field: Field, logits: Exact, seen: Array) -> Exact:
    hidden = np.where(seen, 0.0, -np.inf)
    return field.add(logits, field.constant(hidden))


# -- moves -----------------------------------------------------------------------------------------


@rule_for("Transpose")
def _transpose(at: At) -> Sequence[Exact]:
    perm = at.attributes.get("perm") or tuple(reversed(range(len(at[0].shape))))
    return [at[0].transposed(perm)]


@rule_for("Reshape")
@rule_for("Flatten")
@rule_for("Squeeze")
@rule_for("Unsqueeze")
def _reshape(at: At) -> Sequence[Exact]:
    return [at[0].reshaped(at.plain()[0].shape)]


@rule_for("Trilu")
@rule_for("aten.gather.default")
@rule_for("aten.tril.default")
@rule_for("aten.triu.default")
@rule_for("GatherElements")
@rule_for("aten.index.Tensor")
def _moved(at: At) -> Sequence[Exact | None]:
    known = at.node.operator
    if known.move == "resize" and at.attributes.get("mode") not in ("nearest", b"nearest"):
        return []
    if (
        at.node.op.endswith("QuantizeLinear")
        or at.node.op.endswith("DequantizeLinear")
        or at.attributes.get("reduction", "none") not in ("none", b"none")
    ):
        return []
    pieces: list[Exact] = []
    places: dict[int, Array] = {}
    start = 0
    for place, read in enumerate(at.inputs):
        if isinstance(read, Exact):
            size = read.shadow.size
            same = next((i for i in places if at.node.inputs[i] is at.node.inputs[place]), None)
            if same is None:
                places[place] = (_PLACE + start + np.arange(size)).reshape(read.shape)
                pieces.append(read)
                start += size
    origins = at.plain(places)
    results: list[Exact | None] = [None] * len(at.node.outputs)
    for place, origin in zip(at.wanted, origins, strict=True):
        results[place] = _picked(at, pieces, np.asarray(origin, np.float64), start)
    return results


def _picked(at: At, pieces: Sequence[Exact], origin: Array, total: int) -> Exact:
    """The elements that come from places of ``pieces``, and numbers that come from nowhere."""
    field = at.field
    moved = origin >= _PLACE
    where = np.where(moved, origin - _PLACE, 0).astype(np.int64)
    if np.any(where >= total) or np.any(np.where(moved, origin, _PLACE) != where + _PLACE):
        raise Uncovered(f"{at.node.op} '{at.node.output.name}' does more than move")
    whole = bool(moved.all())
    ends = np.cumsum([piece.shadow.size for piece in pieces])
    used = np.unique(np.searchsorted(ends, where[moved], side="right"))
    if len(used) == 1:  # the others only give it a shape
        start = int(ends[used[0]]) - pieces[used[0]].shadow.size
        pieces, where = [pieces[used[0]]], np.where(moved, where - start, 0)
    first = pieces[0]
    if whole and len(pieces) == 1 and first.source is not None:
        return field.constant(first.source.reshape(-1)[where])
    if whole and len(pieces) == 1:
        return first.picked(where)
    growth = first.growth
    for piece in pieces[1:]:
        growth = growth.joined(piece.growth)
    rest = None if whole else field.constant(np.where(moved, 0.0, origin))
    growth = growth if rest is None else growth.joined(rest.growth)

    def pick(flat: Sequence[Array], literal: Array | None) -> Array:
        array = (
            flat[0].reshape(-1) if len(flat) == 1 else np.concatenate([f.reshape(-1) for f in flat])
        )
        return (
            array[where]
            if literal is None
            else np.where(moved, array[where] if array.size else 0.0, literal)
        )

    residues = np.stack(
        [
            pick([p.residue(j) for p in pieces], None if rest is None else rest.residue(j))
            for j in range(field.residues.count)
        ]
    )
    shadow = pick([p.shadow for p in pieces], None if rest is None else rest.shadow)
    return Exact(shadow, residues, growth)
