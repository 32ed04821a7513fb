"""What each operator computes over the field.

Rational operators, products, means, variances and norms are computed by their definitions.
Operators that only move elements move them. An operator on whole numbers (token ids, sizes, masks)
is run as it is. All others are uninterpreted functions: of each element, of a row, or of everything
that they read. The table of operators (``graph/operators.py``) says which is which.
"""

from __future__ import annotations

from collections.abc import Sequence

from normswap.field.arithmetic import elementwise
from normswap.field.moves import moved_by
from normswap.field.node import RULES, At, Read, Rule, Uncovered
from normswap.field.products import attention, bilinear, softmax
from normswap.field.statistics import STATISTICS, norm
from normswap.field.values import Field
from normswap.graph.graph import Array, Value, is_floating


def compute(at: At) -> list[Read]:
    """The outputs of a node, None for those that nobody wants. Raises Uncovered."""
    node, known = at.node, at.node.operator
    if known.random:
        raise Uncovered(f"{node.op} '{node.output.name}' is random")
    if not at.exact:
        return _placed(at, [_as_read(at.field, array) for array in at.plain()])
    if not any(_is_real(node.outputs[i]) for i in at.wanted):
        return _decision(at)
    rule = RULES.get(node.op) or _rule_of_kind(at)
    if rule is not None:
        found = rule(at)
        if found:
            return [*found, *[None] * (len(node.outputs) - len(found))]
    return _opaque(at)


def _rule_of_kind(at: At) -> Rule | None:
    known = at.node.operator
    if known.normalises and not known.beside:
        return norm
    if known.attention:
        return softmax if known.attention == "softmax" else attention
    if known.product:
        return bilinear
    if (statistic := known.statistic or known.pool) in STATISTICS:
        return STATISTICS[statistic]
    if known.activation and len(at.node.dynamic_inputs()) == 1:
        return elementwise
    if known.move or known.selects:
        return moved_by
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
