"""``Writer``: a norm in elementary operators, step by step, as a ``Plan`` wants it spelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.norms.onnx_sheet import FLOAT32, INT64, Sheet, Size
from tests.norms.spelling_plan import Plan, working_dtypes
from tests.norms.spelling_truth import Array, Case, Truth


@dataclass(frozen=True, eq=False)
class Affine:
    """gamma and beta, as they are stored."""

    gamma: Array | None
    beta: Array | None


@dataclass(frozen=True)
class Root:
    """A standard deviation, or one over it (``inverse``)."""

    value: str
    inverse: bool


class Writer:
    """Writes the steps of a norm as ``plan`` wants them spelled."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.sheet = Sheet(plan.opset)
        self.random = np.random.default_rng(plan.seed)
        self.graph, self.work, self.stats, self.affine_dtype = working_dtypes(plan)
        self.rows = plan.around == "rows"
        self.sizes: list[Size] = [-1, plan.width] if self.rows else plan.sizes
        self.rank = len(self.sizes)
        self.axes = (1,) if self.rows else plan.axes
        self.perm = {3: [0, 2, 1], 4: [0, 2, 3, 1]}.get(self.rank, [])
        self.sign = 1.0

    # -- inputs and outputs ----------------------------------------------------------------------

    def outer_sizes(self) -> list[Size]:
        sizes = self.plan.sizes
        if self.plan.around != "transposed":
            return sizes
        return [sizes[self.perm.index(axis)] for axis in range(self.rank)]

    def begin(self) -> str:
        """The norm's input."""
        x = self.sheet.input("x", self.outer_sizes(), self.graph)
        if self.plan.source == "relu":
            x = self.sheet.op("Relu", x)
        elif self.plan.source == "add":
            x = self.sheet.op("Add", x, self.sheet.input("x2", self.outer_sizes(), self.graph))
        if self.plan.around == "transposed":
            x = self.sheet.transpose(x, self.perm)
        elif self.rows:
            x = self.sheet.reshape(x, [-1, self.plan.width])
        return self.sheet.cast(x, self.work)

    def end(self, y: str) -> None:
        """What comes after the norm, up to the graph's output."""
        sheet, outer = self.sheet, self.outer_sizes()
        y = sheet.cast(y, self.graph)
        if self.plan.around == "transposed":
            y = sheet.transpose(y, [self.perm.index(axis) for axis in range(self.rank)])
        elif self.rows:
            y = sheet.reshape(y, [-1, *(int(n) for n in outer[1:])])
        if self.plan.after == "relu":
            y = sheet.op("Relu", y)
        elif self.plan.after == "linear":
            weight = self.random.standard_normal((int(outer[-1]), 3))
            y = sheet.op("MatMul", y, sheet.constant(weight, self.graph))
        elif self.plan.after == "scaled":
            y = self.mul(y, sheet.constant(0.125, self.graph))
        elif self.plan.after == "adaln":
            sizes: list[Size] = [outer[0], *[1] * (len(outer) - 2), outer[-1]]
            scale, shift = (sheet.input(n, sizes, self.graph) for n in ("scale", "shift"))
            one = sheet.constant(1, self.graph)
            y = sheet.op("Add", self.mul(y, sheet.op("Add", one, scale)), shift)
        sheet.output(y, len(outer))

    def mul(self, a: str, b: str) -> str:
        return self.sheet.op("Mul", *((b, a) if self.plan.swap_mul else (a, b)))

    def add(self, a: str, b: str) -> str:
        return self.sheet.op("Add", *((b, a) if self.plan.swap_add else (a, b)))

    # -- statistics ------------------------------------------------------------------------------

    def reduced(self, kind: str, x: str, axes: tuple[int, ...] | None = None) -> str:
        """A reduction that keeps the rank, whatever it takes."""
        axes = axes or self.axes
        written = [axis - self.rank if self.plan.negative_axes else axis for axis in axes]
        keep = self.plan.restore == "keep" or 0 in axes
        y = self.sheet.over(kind, x, written, keepdims=int(keep))
        if keep:
            return y
        if self.plan.restore == "unsqueeze":
            return self.sheet.over("Unsqueeze", y, written)
        sizes = [1 if i in axes else n if i else -1 for i, n in enumerate(self.sizes)]
        return self.sheet.reshape(y, [int(n) for n in sizes])

    def times(self, x: str, factor: float, divide: bool) -> tuple[str, float]:
        """``x * factor``, as a division by the integer 1 / factor if asked; and the true factor."""
        if factor == 1:
            return x, 1.0
        dtype = self.sheet.dtypes[x]
        if divide:
            return self.sheet.op("Div", x, self.sheet.constant(1 / factor, dtype)), factor
        stored = self.sheet.constant(factor, dtype)
        return self.mul(x, stored), rounded(factor, dtype)

    def average(self, x: str, how: str, axes: tuple[int, ...] | None = None) -> tuple[str, float]:
        """The mean over the norm's axes; and by which factor it is off."""
        count = self.plan.count
        if how == "matmul" and not axes:
            weight = rounded(1 / count, self.sheet.dtypes[x])
            column = self.sheet.constant(np.full((count, 1), weight), self.sheet.dtypes[x])
            return self.sheet.op("MatMul", x, column), weight * count
        if how == "pool" and not axes:
            return self.sheet.op("GlobalAveragePool", x), 1.0
        if how == "mean" or axes:
            return self.reduced("ReduceMean", x, axes), 1.0
        total = self.reduced("ReduceSum", x)
        y, factor = self.times(total, 1 / count, divide=how == "sum_div")
        return y, factor * count

    def mean(self, x: str, axes: tuple[int, ...] | None = None) -> str:
        return self.sheet.cast(
            self.average(self.sheet.cast(x, self.stats), self.plan.mean, axes)[0], self.work
        )

    def deviations(self, x: str, m: str) -> tuple[str, str]:
        """x - m as the numerator and as what the variance is of; sets the numerator's sign."""
        how, op = self.plan.deviation, self.sheet.op
        if how == "negative":
            d = self.add(x, op("Neg", m))
            return d, d
        first = how in ("reversed", "reversed_numerator")
        d = op("Sub", m, x) if first else op("Sub", x, m)
        self.sign = -1.0 if first else 1.0
        if how in ("shared", "reversed"):
            return d, d
        again = self.mean(x) if how == "second_mean" else m
        return d, op("Sub", again, x) if how == "reversed_variance" else op("Sub", x, again)

    def squared(self, d: str, exponent: float = 2.0) -> str:
        """|d| ** exponent."""
        how, sheet = self.plan.square, self.sheet
        if exponent != 2:
            return sheet.op("Pow", sheet.op("Abs", d), sheet.constant(exponent, self.stats))
        if how == "mul":
            return sheet.op("Mul", d, d)
        if how == "pow_int":
            return sheet.op("Pow", d, sheet.constant(2, INT64))
        if how == "pow_cast":
            two = sheet.op("Cast", sheet.constant(2, INT64), dtype=self.stats, to=_code(self.stats))
            return sheet.op("Pow", d, two)
        base = sheet.op("Abs", d) if how == "abs" else d
        return sheet.op("Pow", base, sheet.constant(2.0, self.stats))

    def variance(
        self, d: str, exponent: float = 2.0, axes: tuple[int, ...] | None = None
    ) -> tuple[str, float]:
        """The mean square of ``d``; and by which factor it is another one (see Plan.variance)."""
        p, d = self.plan, self.sheet.cast(d, self.stats)
        count = p.count
        target = {"unbiased": 1 / (count - 1), "sum": 1.0}.get(p.variance, 1 / count)
        if p.square in ("sum_square", "l2") and exponent == 2 and not axes:
            total = self.reduced("ReduceSumSquare" if p.square == "sum_square" else "ReduceL2", d)
            total = total if p.square == "sum_square" else self.squared(total)
        elif p.average in ("sum_div", "sum_mul") and not axes:
            total = self.reduced("ReduceSum", self.squared(d, exponent))
        else:
            y, factor = self.average(self.squared(d, exponent), p.average, axes)
            y, more = self.times(y, target * count, divide=False)
            return y, factor * more
        y, factor = self.times(total, target, divide=p.average != "sum_mul")
        return y, factor * count

    def plus_epsilon(self, v: str, epsilon: str) -> str:
        return self.sheet.op("Add", *((epsilon, v) if self.plan.epsilon_first else (v, epsilon)))

    def epsilon(self) -> tuple[str, float]:
        p = self.plan
        dtype = self.work if p.kind == "batch_norm" else self.stats
        value = p.epsilon * p.count if p.variance == "sum" and p.kind != "batch_norm" else p.epsilon
        stored = rounded(value, dtype)
        return self.sheet.constant(np.full(p.epsilon_shape, stored), dtype, p.epsilon_how), stored

    def root(self, e: str) -> Root:
        op, dtype, how = self.sheet.op, self.sheet.dtypes[e], self.plan.root
        if how in ("pow_div", "pow_mul"):
            inverse = how == "pow_mul"
            half = self.sheet.constant(-0.5 if inverse else 0.5, dtype)
            s = op("Pow", e, half)
        elif how == "exp_log":
            inverse = True
            s = op("Exp", self.mul(op("Log", e), self.sheet.constant(-0.5, dtype)))
        elif how == "reciprocal_sqrt":
            inverse, s = True, op("Sqrt", op("Reciprocal", e))
        else:
            inverse, s = how != "sqrt_div", op("Sqrt", e)
            if how == "sqrt_reciprocal":
                s = op("Reciprocal", s)
            elif how == "one_over":
                s = op("Div", self.sheet.constant(1, dtype), s)
        return Root(self.sheet.cast(s, self.work), inverse)

    # -- the formula -----------------------------------------------------------------------------

    def divided(self, d: str, root: Root) -> str:
        return self.mul(d, root.value) if root.inverse else self.sheet.op("Div", d, root.value)

    def parameter(self, name: str, array: Array, dtype: Any = None, shape: str = "") -> str:
        """A constant over the normalised axes, broadcast against the norm's input; one number if
        ``name`` is among the plan's ``numbers``."""
        p, shape = self.plan, shape or self.plan.affine_shape
        full = [int(n) if i in self.axes else 1 for i, n in enumerate(self.sizes)]
        leading = {"row": max(self.axes[0] - 1, 0), "full": 0}.get(shape, self.axes[0])
        array = array.reshape(full[leading:])
        if name in p.numbers:
            array = array.reshape(-1)[:1].reshape((1,) * min(p.number_rank, self.rank))
        elif shape == "partial":
            array = array[:1].reshape(-1) if p.seed % 2 else array[:, :1]
        return self.sheet.constant(array, dtype or self.affine_dtype, p.affine_how)

    def alike(self, name: str, array: Array, dtype: Any = None) -> Array:
        """``array`` as it is stored: rounded, and equal where one number stands for several."""
        p = self.plan
        if name in p.numbers:
            array = np.full_like(array, array.flat[0])
        elif p.affine_shape == "partial":
            array = np.broadcast_to(array[:1] if p.seed % 2 else array[:, :1], array.shape)
        return np.asarray(rounded(array, dtype or self.affine_dtype))

    def affine(self) -> Affine:
        """Random parameters."""
        p = self.plan
        shape = p.normalized_shape
        gamma = self.random.uniform(0.5, 1.5, shape) * self.random.choice([1, 1, -1], shape)
        gamma = np.ones(shape) if p.gamma == "ones" else self.alike("gamma", gamma)
        if p.variance == "sum" and p.kind != "batch_norm":
            gamma = np.asarray(rounded(gamma * np.sqrt(p.count), self.affine_dtype))
        if p.gamma == "with_zero" and "gamma" not in p.numbers and p.affine_shape != "partial":
            gamma.flat[1] = 0
        beta = self.alike("beta", self.random.standard_normal(shape))
        return Affine(
            gamma if p.affine in ("both", "gamma") else None,
            beta if p.affine in ("both", "beta") else None,
        )

    def assembled(
        self, x: str, m: str | None, d: str, root: Root, affine: Affine
    ) -> tuple[str, Affine]:
        """y from its parts; and gamma and beta as they count, before the root's own factor.

        With k = 1/s: plain: (d/s)*g + b; gamma_inside: (d*g)/s + b; scale_first: d*(g/s) + b;
        affine: x*(g/s) + (b - m*(g/s)); affine_steps: x*(g/s) - m*(g/s) + b;
        shift_inside: (d/s + b/g)*g; inner: (x*k - m*k)*g + b; inner_shift: (x*k + (b/g - m*k))*g.
        """
        order, sheet, sign = self.plan.order, self.sheet, self.sign
        gamma, beta = affine.gamma, affine.beta
        inside = order in ("shift_inside", "inner_shift") and gamma is not None and beta is not None
        if inside and gamma is not None and beta is not None:
            h = self.alike("beta", beta / gamma)
            beta = h * gamma
        g = None if gamma is None else self.parameter("gamma", gamma)
        b = None if beta is None else self.parameter("beta", h if inside else beta)
        behind = g if inside or order == "inner" else None  # the factor of the inner part
        if order in ("affine", "affine_steps", "inner", "inner_shift"):
            a = self.scale(None if behind else g, root)
            y = self.mul(x, a)
            if m is not None:
                sign, shift = 1.0, self.mul(m, a)
                if order in ("affine", "inner_shift"):
                    b = sheet.op("Sub", b, shift) if b else sheet.op("Neg", shift)
                else:
                    y = sheet.op("Sub", y, shift)
        elif order == "scale_first":
            y = self.mul(d, self.scale(g, root))
        elif order == "gamma_inside":
            y = self.divided(self.mul(d, g) if g else d, root)
        else:
            y = sheet.cast(self.divided(d, root), self.affine_dtype)
            if self.plan.reader == "normalised" and (g or b):
                sheet.output(y, self.rank)
            y = self.mul(y, g) if g and not behind else y
        if inside and b:
            y, b = self.add(y, b), None
        y = self.mul(y, behind) if behind else y
        y = self.add(y, b) if b else y
        signed = gamma if sign == 1 else -np.ones(self.plan.normalized_shape) * _or_one(gamma)
        return y, Affine(signed, beta)

    def scale(self, g: str | None, root: Root) -> str:
        """g / s"""
        if root.inverse:
            return self.mul(g, root.value) if g else root.value
        return self.sheet.op("Div", g, root.value) if g else self.sheet.op("Reciprocal", root.value)

    # -- the whole -------------------------------------------------------------------------------

    def statistics(self, x: str) -> tuple[str | None, str, str, float]:
        """The mean, the numerator, and the variance with its factor."""
        if self.plan.kind == "rms_norm":
            return None, x, *self.variance(x)
        m = self.mean(x)
        d, spread = self.deviations(x, m)
        if self.plan.reader == "mean":
            self.sheet.output(m, self.rank)
        if self.plan.reader == "deviation":
            self.sheet.output(self.sheet.op("Relu", spread), self.rank)
        if self.plan.variance == "moments":
            wide = self.sheet.cast(m, self.stats)
            v, factor = self.variance(x)
            return m, d, self.sheet.op("Sub", v, self.sheet.op("Mul", wide, wide)), factor
        return m, d, *self.variance(spread)

    def norm(self, x: str, affine: Affine) -> tuple[str, Truth]:
        """A LayerNorm or RMSNorm of ``x``."""
        m, d, v, factor = self.statistics(x)
        name, epsilon = self.epsilon()
        root = self.root(self.plus_epsilon(v, name))
        y, counts = self.assembled(x, m, d, root, affine)
        return y, self.truth(x, y, epsilon / factor, counts, factor)

    def batch_norm(self, x: str, affine: Affine) -> tuple[str, Truth]:
        """(x - mean) / sqrt(var + epsilon) * g + b with constant statistics, node for node."""
        shape, dtype = self.plan.normalized_shape, self.work
        mean, variance = self.random.standard_normal(shape), self.random.uniform(0.5, 2, shape)
        if self.plan.statistics == "initial":
            mean, variance = np.zeros(shape), np.ones(shape)
        mean, variance = self.alike("mean", mean, dtype), self.alike("variance", variance, dtype)
        written = {"keep": "vector", "unsqueeze": "row", "reshape": "full"}[self.plan.restore]
        m = self.parameter("mean", mean, dtype, written)
        v = self.parameter("variance", variance, dtype, written)
        name, epsilon = self.epsilon()
        root = self.root(self.plus_epsilon(v, name))
        d, _ = self.deviations(x, m)
        y, counts = self.assembled(x, m, d, root, affine)
        truth = self.truth(x, y, epsilon, counts)
        return y, replace(truth, mean=mean, variance=variance)

    def truth(self, x: str, y: str, epsilon: float, affine: Affine, factor: float = 1.0) -> Truth:
        p, gamma = self.plan, affine.gamma
        if factor != 1:
            gamma = np.ones(p.normalized_shape) * _or_one(gamma) / np.sqrt(factor)
        return Truth(
            p.kind, self.axes, p.normalized_shape, epsilon, gamma, affine.beta, x, y
        )  # fmt: skip

    def case(self, *truths: Truth, note: str = "", has_root: bool = False) -> Case:
        text = f"{note}: {self.plan}" if note else str(self.plan)
        return Case(self.sheet.model(), truths, text, self.plan.delicate, has_root)


def rounded(value: Any, dtype: Any) -> Any:
    """The float64 number (or array) that a constant of ``dtype`` holds."""
    array = np.asarray(value, np.float64).astype(dtype).astype(np.float64)
    return array if array.ndim else float(array)


def _or_one(gamma: Array | None) -> Array | float:
    return 1.0 if gamma is None else gamma


def _code(dtype: Any) -> int:
    return 1 if dtype == FLOAT32 else 10  # of TensorProto
