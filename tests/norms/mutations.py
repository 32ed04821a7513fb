"""The steps of a norm written wrongly: what a near-miss does in place of one of them.

Written so that no smaller norm hides inside: (x - m/2) / sqrt(mean((x - m/2)^2) + e) would be an
RMSNorm of x - m/2, so the variance is taken of other deviations than the numerator's. Each function
takes the writer and the norm's input, and gives the numerator and the root, or the whole output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from tests.norms.onnx_sheet import INT64
from tests.norms.spelling_writer import Root, Writer

Parts = tuple[str, Root]  # what is divided, and by what


def _other_axes(w: Writer) -> tuple[int, ...]:
    """Axes that are not the norm's, nor the batch."""
    rest = range(1, w.rank)
    sets = [s for k in range(1, w.rank) for s in combinations(rest, k) if s != w.axes]
    return sets[w.plan.seed % len(sets)]


def _row_axis(w: Writer) -> int:
    return next(axis for axis in range(1, w.rank) if axis not in w.axes)


def _pick(w: Writer, *options: Any) -> Any:
    return options[w.plan.seed % len(options)]


def _another(w: Writer, name: str = "z") -> str:
    """A second graph input of the norm's sizes."""
    return w.sheet.cast(w.sheet.input(name, w.sizes, w.graph), w.work)


def _rooted(w: Writer, v: str) -> Root:
    """The root of v + epsilon."""
    return w.root(w.plus_epsilon(v, w.epsilon()[0]))


def _true_root(w: Writer, x: str) -> Root:
    """The standard deviation as it should be, from steps of its own."""
    spread = x if w.plan.kind == "rms_norm" else w.sheet.op("Sub", x, w.mean(x))
    return _rooted(w, w.variance(spread)[0])


def _square_root(w: Writer, e: str) -> str:
    if w.plan.root == "pow_div":
        return w.sheet.op("Pow", e, w.sheet.constant(0.5, w.sheet.dtypes[e]))
    return w.sheet.op("Sqrt", e)


def _divisor(w: Writer, s: str) -> Root:
    """``s`` to divide by, or its reciprocal to multiply with."""
    inverse = w.plan.root in ("sqrt_reciprocal", "one_over")
    s = w.sheet.op("Reciprocal", s) if inverse else s
    return Root(w.sheet.cast(s, w.work), inverse)


# -- epsilon -------------------------------------------------------------------------------------


def epsilon_outside(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    return d, _divisor(w, w.plus_epsilon(_square_root(w, v), w.epsilon()[0]))


def epsilon_twice(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    epsilon = w.epsilon()[0]
    s = _square_root(w, w.plus_epsilon(v, epsilon))
    return d, _divisor(w, w.plus_epsilon(s, epsilon))


def epsilon_vector(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    values = w.plan.epsilon * w.random.uniform(1, 3, w.plan.normalized_shape)
    return d, w.root(w.plus_epsilon(v, w.parameter("", values, w.stats, "vector")))


def epsilon_input(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    return d, w.root(w.plus_epsilon(v, w.sheet.input("epsilon", [], w.stats)))


def epsilon_subtracted(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    return d, w.root(w.sheet.op("Sub", v, w.epsilon()[0]))


def variance_clamped(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    return d, w.root(w.sheet.op("Max", v, w.epsilon()[0]))


# -- exponents -----------------------------------------------------------------------------------


def exponent(w: Writer, x: str) -> Parts:
    m = None if w.plan.kind == "rms_norm" else w.mean(x)
    d, spread = (x, x) if m is None else w.deviations(x, m)
    return d, _rooted(w, w.variance(spread, _pick(w, 4.0, 3.0, 1.5, 1.0))[0])


def root_exponent(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    e = w.plus_epsilon(v, w.epsilon()[0])
    exponent = _pick(w, 0.4, 1 / 3, 0.25, 1.0, -0.4)
    if exponent == 1:
        return d, _divisor(w, e)
    s = w.sheet.op("Pow", e, w.sheet.constant(exponent, w.stats))
    return d, Root(w.sheet.cast(s, w.work), exponent < 0)


def root_twice(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    s = _square_root(w, w.plus_epsilon(v, w.epsilon()[0]))
    return d, _divisor(w, _square_root(w, s))


def root_multiplied(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    root = _rooted(w, v)
    return d, replace(root, inverse=not root.inverse)


def division_reversed(w: Writer, x: str) -> Parts:
    _, d, v, _ = w.statistics(x)
    return _rooted(w, v).value, Root(d, False)


# -- axes ----------------------------------------------------------------------------------------


def mean_axis(w: Writer, x: str) -> Parts:
    return w.sheet.op("Sub", x, w.mean(x, _other_axes(w))), _true_root(w, x)


def variance_axis(w: Writer, x: str) -> Parts:
    axes = _other_axes(w)
    spread = w.sheet.op("Sub", x, w.mean(x, axes))
    v, _ = w.variance(spread, axes=axes)
    return w.deviations(x, w.mean(x))[0], _rooted(w, v)


def batch_axis(w: Writer, x: str) -> Parts:
    axes = _pick(w, (0,), (0, *w.axes), (0, 1))
    d = x if w.plan.kind == "rms_norm" else w.sheet.op("Sub", x, w.mean(x, axes))
    return d, _rooted(w, w.variance(d, axes=axes)[0])


def other_row(w: Writer, x: str) -> Parts:
    """Divided by the standard deviation of another token."""
    _, d, v, _ = w.statistics(x)
    axis = _row_axis(w)
    order = w.sheet.constant(np.arange(int(w.sizes[axis]))[::-1], INT64)
    return d, _rooted(w, w.sheet.op("Gather", v, order, axis=axis))


def first_half(w: Writer, x: str) -> Parts:
    """Statistics of a half of the channels."""
    axis = w.axes[-1]
    bounds = [[0], [int(w.sizes[axis]) // 2], [axis]]
    half = w.sheet.op("Slice", x, *(w.sheet.constant(b, INT64) for b in bounds))
    if w.plan.kind == "rms_norm":
        return x, _rooted(w, w.variance(half, axes=w.axes)[0])
    m = w.mean(half, w.axes)
    spread = w.sheet.op("Sub", half, m)
    return w.sheet.op("Sub", x, m), _rooted(w, w.variance(spread, axes=w.axes)[0])


# -- operands ------------------------------------------------------------------------------------


def mean_factor(w: Writer, x: str) -> Parts:
    """x - c * mean in the numerator or in the variance."""
    numerator = w.plan.seed % 2
    factor = _pick(w, 0.5, 1.001 if numerator else 1.1, 2.0)  # the variance sees its square
    m = w.mean(x)
    wrong = w.sheet.op("Sub", x, w.mul(m, w.sheet.constant(factor, w.work)))
    if numerator:
        return wrong, _true_root(w, x)
    return w.sheet.op("Sub", x, m), _rooted(w, w.variance(wrong)[0])


def foreign_numerator(w: Writer, x: str) -> Parts:
    z = _another(w)
    d = z if w.plan.kind == "rms_norm" else w.sheet.op("Sub", z, w.mean(x))
    return d, _true_root(w, x)


def foreign_mean(w: Writer, x: str) -> Parts:
    return w.sheet.op("Sub", x, w.mean(_another(w))), _true_root(w, x)


def foreign_subtrahend(w: Writer, x: str) -> Parts:
    return w.sheet.op("Sub", x, _another(w)), _true_root(w, x)


def foreign_variance(w: Writer, x: str) -> Parts:
    d = x if w.plan.kind == "rms_norm" else w.sheet.op("Sub", x, w.mean(x))
    return d, _true_root(w, _another(w))


def maximum_subtracted(w: Writer, x: str) -> Parts:
    return w.sheet.op("Sub", x, w.reduced("ReduceMax", x)), _true_root(w, x)


def numerator_uncentred(w: Writer, x: str) -> Parts:
    return x, _true_root(w, x)


def variance_uncentred(w: Writer, x: str) -> Parts:
    return w.sheet.op("Sub", x, w.mean(x)), _rooted(w, w.variance(x)[0])


# -- something in between ------------------------------------------------------------------------


def numerator_through(*ops: str) -> Callable[[Writer, str], Parts]:
    def write(w: Writer, x: str) -> Parts:
        _, d, v, _ = w.statistics(x)
        return w.sheet.op(_pick(w, *ops), d), _rooted(w, v)

    return write


def variance_through(w: Writer, x: str) -> Parts:
    m = None if w.plan.kind == "rms_norm" else w.mean(x)
    d, spread = (x, x) if m is None else w.deviations(x, m)
    return d, _rooted(w, w.variance(w.sheet.op(_pick(w, "Relu", "Tanh"), spread))[0])


def variance_weighted(w: Writer, x: str) -> Parts:
    """gamma before the statistics, but not in the numerator."""
    m = None if w.plan.kind == "rms_norm" else w.mean(x)
    d, spread = (x, x) if m is None else w.deviations(x, m)
    weights = w.parameter("", w.random.uniform(0.5, 2, w.plan.normalized_shape), w.work, "vector")
    return d, _rooted(w, w.variance(w.mul(spread, weights))[0])


def row_gamma(w: Writer, x: str) -> str:
    """d * (g / s) + b with a g per token: an elementwise InstanceNorm, for one."""
    _, d, v, _ = w.statistics(x)
    axis, affine = _row_axis(w), w.affine()
    size = int(w.sizes[axis])
    shape = [size if i == axis else 1 for i in range(axis, w.rank)]
    gamma = w.sheet.constant(np.linspace(0.5, 2, size).reshape(shape), w.work, w.plan.affine_how)
    y = w.mul(d, w.scale(gamma, _rooted(w, v)))
    return y if affine.beta is None else w.add(y, w.parameter("beta", affine.beta, w.work))


# -- other norms ---------------------------------------------------------------------------------


def _length(w: Writer, d: str) -> str:
    if w.plan.square == "l2":
        return w.reduced("ReduceL2", d)
    return _square_root(w, w.reduced("ReduceSum", w.squared(w.sheet.cast(d, w.stats))))


def l2(w: Writer, x: str) -> str:
    """x / ||x||, which has no epsilon."""
    return w.sheet.op("Div", x, w.sheet.cast(_length(w, x), w.work))


def l2_epsilon(w: Writer, x: str) -> Parts:
    s = w.sheet.cast(_length(w, x), w.stats)
    epsilon = w.epsilon()[0]
    how = _pick(w, "max", "plus")
    s = w.sheet.op("Max", s, epsilon) if how == "max" else w.plus_epsilon(s, epsilon)
    return x, _divisor(w, s)


def absolute_deviation(w: Writer, x: str) -> Parts:
    _, d, _, _ = w.statistics(x)
    v, _ = w.average(w.sheet.cast(w.sheet.op("Abs", d), w.stats), w.plan.average)
    return d, _divisor(w, w.plus_epsilon(v, w.epsilon()[0]))


def softmax(w: Writer, x: str) -> Parts:
    e = w.sheet.op("Exp", w.sheet.op("Sub", x, w.reduced("ReduceMax", x)))
    return e, Root(w.reduced("ReduceSum", e), False)


def instance_operator(w: Writer, x: str) -> str:
    count = int(w.sizes[1])
    scale, shift = (w.sheet.constant(w.random.uniform(0.5, 2, count)) for _ in range(2))
    return w.sheet.op("InstanceNormalization", x, scale, shift, epsilon=w.plan.epsilon)


def group_operator(w: Writer, x: str) -> str:
    count = w.plan.width
    scale, shift = (w.sheet.constant(w.random.uniform(0.5, 2, count)) for _ in range(2))
    kind = "GroupNormalization"
    return w.sheet.op(kind, x, scale, shift, num_groups=2, epsilon=w.plan.epsilon)


def group_elementwise(w: Writer, x: str) -> str:
    """[B, C, L] as [B, 2, C / 2, L], normalised over the last two, gamma and beta per channel."""
    op, const = w.sheet.op, w.sheet.constant
    length = int(np.prod([int(n) for n in w.sizes[2:]]))
    shape = [2, w.plan.width // 2, 1]
    z = w.sheet.reshape(x, [-1, 2, w.plan.width // 2, length])
    d = op("Sub", z, w.sheet.over("ReduceMean", z, [2, 3]))
    v = w.sheet.over("ReduceMean", op("Mul", d, d), [2, 3])
    root = _rooted(w, v)
    gamma, beta = (const(w.random.uniform(0.5, 2, shape)) for _ in range(2))
    y = w.add(w.mul(d, w.scale(gamma, root)), beta)
    return w.sheet.reshape(y, [-1, *(int(n) for n in w.sizes[1:])])


def batch_norm_per_element(w: Writer, x: str) -> str:
    """Constant statistics that differ along every axis but the batch."""
    shape = [int(n) for n in w.sizes[1:]]
    m, g, b = (w.sheet.constant(w.random.standard_normal(shape), w.work) for _ in range(3))
    v = w.sheet.constant(w.random.uniform(0.5, 2, shape), w.work)
    root = w.root(w.plus_epsilon(v, w.epsilon()[0]))
    return w.add(w.mul(w.divided(w.sheet.op("Sub", x, m), root), g), b)


def number_root(w: Writer, x: str) -> str:
    """(x - m) / sqrt(n) * g + b: without an epsilon beside it a number n is no variance."""
    m, g, b = (w.parameter("", w.random.uniform(0.5, 2, w.plan.normalized_shape)) for _ in range(3))
    root = w.root(w.sheet.constant(64.0, w.work))
    return w.add(w.mul(w.divided(w.sheet.op("Sub", x, m), root), g), b)


def batch_norm_of_numbers(w: Writer, x: str) -> str:
    """A BatchNorm of one number each, which is of no axis."""
    m, v, g, b = (w.sheet.constant(w.random.uniform(0.5, 2), w.work) for _ in range(4))
    root = w.root(w.plus_epsilon(v, w.epsilon()[0]))
    return w.add(w.mul(w.divided(w.sheet.op("Sub", x, m), root), g), b)
