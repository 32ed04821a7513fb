"""Sums, products, powers, roots and functions of elements over the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normswap.field.exact import Exact
from normswap.field.node import At, rule_for

_HIGHEST = 8  # the highest power that is multiplied out


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
        and 1 <= abs(exponent) <= _HIGHEST
    ):
        found = x
        for _ in range(int(abs(exponent)) - 1):
            found = at.field.multiply(found, x)
        found = at.field.reciprocal(found) if exponent < 0 else found
    else:
        return elementwise(at)
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
def elementwise(at: At) -> list[Exact]:
    """An uninterpreted function of each element."""
    at.uninterpreted = at.node.op
    arguments = [at[i] for i, x in enumerate(at.inputs) if x is not None]
    (shadow,) = at.plain()
    shape = np.broadcast_shapes(*(a.shape for a in arguments))
    if len(at.wanted) != 1 or shape != shadow.shape:
        return []
    return [at.field.function(at.name(), shadow, *arguments)]


@rule_for("Cast")
def _cast(at: At) -> list[Exact]:
    return [at[0]]


@rule_for("Identity")
@rule_for("Dropout")
def _same(at: At) -> Sequence[Exact]:
    return _cast(at) if not at.attributes.get("training_mode") and len(at.wanted) == 1 else []
