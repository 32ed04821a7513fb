"""Means, variances and other statistics over the field, and the norms made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from normswap.field.exact import Exact
from normswap.field.node import At, Rule, Uncovered
from normswap.field.residues import BITS
from normswap.field.values import Field
from normswap.graph.graph import Array

_WINDOW, _WHOLE = 18, 52


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


def _maximum(at: At) -> Sequence[Exact]:
    at.uninterpreted = at.node.op
    x = at[0]
    axes, keep = _axes(at, x)
    shadow = x.shadow.max(axis=axes, keepdims=True)
    found = at.field.rows("maximum", shadow, x, axes, reduces=True)
    shape = found.shape if keep else tuple(s for a, s in enumerate(x.shape) if a not in axes)
    return [found.reshaped(shape)]


STATISTICS: dict[str, Rule] = {
    "mean": _mean,
    "sum": _total,
    "sum of squares": _squares,
    "L2 norm": _l2_norm,
    "variance": _variance,
    "deviation": _variance,
    "maximum": _maximum,
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


def norm(at: At) -> Sequence[Exact | None]:
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
