"""Products of matrices, convolutions and attention over the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normswap.field.exact import Exact
from normswap.field.node import At, Uncovered, rule_for
from normswap.field.residues import fits, split
from normswap.field.values import Field
from normswap.graph.graph import Array


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


def bilinear(at: At) -> Sequence[Exact]:
    """A product of its first two inputs by the operator itself, on halves of the second."""
    field, (x, w) = at.field, (at[0], at[1])
    if len(at.wanted) != 1:
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


# -- attention -------------------------------------------------------------------------------------


def softmax(at: At) -> Sequence[Exact]:
    at.uninterpreted = "Softmax"
    x, axis = at[0], at.attributes.get("axis")
    if axis is None or at.node.op != "Softmax":
        return []
    found = _softmaxed(at.field, x, axis % len(x.shape))
    # Below opset 13 it is one of all axes from this one on.
    return [found] if np.allclose(found.shadow, at.plain()[0], equal_nan=True) else []


def _softmaxed(field: Field, x: Exact, axis: int) -> Exact:
    with np.errstate(all="ignore"):
        powers = np.exp(x.shadow - x.shadow.max(axis, keepdims=True))
        shadow = powers / powers.sum(axis, keepdims=True)
    return field.rows("softmax", shadow, x, (axis,), reduces=False)


def attention(at: At) -> Sequence[Exact]:
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
    if known.get("qk_matmul_output_mode"):
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
